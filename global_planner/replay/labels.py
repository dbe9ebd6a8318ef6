"""Where the labels of points in a figure go so that none covers another label or a point. Pure.

Sizes are estimated: a character is so wide, a line so high, in a figure that is drawn about so large, across a page. Points
that fall on one place share a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1050.0, 260.0  # pixels of the area of a figure of a page's width
CHARACTER, LINE, POINT = 6.6, 15.0, 11.0  # pixels
SAME = 4.0  # pixels: points so near are one place
MARGIN = 0.05  # of an axis beyond the outermost point, at either end
LEAST_SPAN = 0.1  # of the largest x: nearer values are not drawn apart as if they were worlds apart
# By plotly's names, with where the middle of the text is: (text widths, lines) from the point; the first that is free is taken.
PLACES: tuple[tuple[str, float, float], ...] = (
    ("top center", 0.0, 1.0),
    ("bottom center", 0.0, -1.0),
    ("middle right", 0.5, 0.0),
    ("middle left", -0.5, 0.0),
    ("top right", 0.5, 0.8),
    ("top left", -0.5, 0.8),
    ("bottom right", 0.5, -0.8),
    ("bottom left", -0.5, -0.8),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """`text` "": that of another point stands for it; None: no place was free."""

    text: str | None
    position: str


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    low: float
    right: float
    high: float

    def meets(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


def placed(points: Sequence[tuple[str, float, float]]) -> list[Label]:
    """A label for each (text, x, y), in their order. Those that come first choose first.

    >>> [label.position for label in placed([("a", 0.0, 0.0), ("b", 1.0, 1.0)])]
    ['top center', 'top center']
    """
    at = _pixels(points)
    stands_for: dict[int, list[str]] = {}
    owners: list[int] = []
    for index, (text, _, _) in enumerate(points):
        owner = next((other for other in owners if _near(at[other], at[index])), None)
        if owner is None:
            owners.append(index)
            owner = index
        stands_for.setdefault(owner, []).append(text)
    taken = [_Box(x - POINT / 2, y - POINT / 2, x + POINT / 2, y + POINT / 2) for x, y in (at[owner] for owner in owners)]
    labels = [Label(text="", position=PLACES[0][0]) for _ in points]
    for owner in owners:
        labels[owner] = Label(text=None, position=PLACES[0][0])
        text = ", ".join(stands_for[owner])
        for position, across, up in PLACES:
            box = _box(at[owner], text, across, up)
            inside = (
                box.left >= -CHARACTER and box.right <= WIDTH + CHARACTER and box.low >= -LINE and box.high <= HEIGHT + LINE
            )
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                labels[owner] = Label(text=text, position=position)
                break
    return labels


def across(xs: Sequence[float]) -> tuple[float, float]:
    """The ends of the axis of values >= 0: around them evenly, at least `LEAST_SPAN` of the largest wide without the margins.

    >>> across([9.5, 10.0])
    (9.194444444, 10.305555556)
    """
    low, high = min(xs, default=0.0), max(xs, default=0.0)
    more = max(0.0, LEAST_SPAN * high - (high - low)) / 2.0
    low, high = low - more, high + more
    margin = MARGIN / (1.0 - 2.0 * MARGIN) * (high - low) or 1.0
    return round(low - margin, 9), round(high + margin, 9)


def _pixels(points: Sequence[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """Where points are in the area: from left to right by `across`, upwards with plotly's margin around them."""
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    (left, right), low, high = across(xs), min(ys, default=0.0), max(ys, default=0.0)

    def up(y: float) -> float:
        return MARGIN + (1.0 - 2.0 * MARGIN) * (y - low) / (high - low) if high > low else 0.5

    return [(WIDTH * (x - left) / (right - left), HEIGHT * up(y)) for _, x, y in points]


def _near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[0] - other[0]) < SAME and abs(one[1] - other[1]) < SAME


def _box(point: tuple[float, float], text: str, across: float, up: float) -> _Box:
    wide = CHARACTER * len(text)
    x, y = point[0] + across * (wide + 2 * POINT), point[1] + up * (LINE / 2 + POINT)
    return _Box(x - wide / 2, y - LINE / 2, x + wide / 2, y + LINE / 2)
