"""The Prometheus text format, read fast: only the families asked for, and labels parsed once for all scrapes. Pure.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

_LABELS = r'(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?'
_LINE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*{_LABELS}[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*\Z")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,|\Z)')
_ESCAPE = re.compile(r"\\(.)")
_PLAIN = {"n": "\n", "\\": "\\", '"': '"'}


class MalformedExposition(ValueError):
    """Text that is not in the format; the message has the line's number and content."""


@dataclass(frozen=True, slots=True)
class Series:
    """One sample of one series."""

    labels: Mapping[str, str]
    value: float


Families = Mapping[str, Mapping[str, Series]]
"""name -> label text as written -> series. The label text identifies the series from scrape to scrape of one source."""


def parse(text: str, wanted: Callable[[str], bool]) -> Families:
    """The samples in `text` whose metric name is `wanted`. Raises MalformedExposition.

    >>> families = parse('up{job="a"} 1\\n# a comment\\nother 2\\n', lambda name: name == "up")
    >>> [(series.labels["job"], series.value) for series in families["up"].values()]
    [('a', 1.0)]
    """
    families: dict[str, dict[str, Series]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line[0] == "#" or line.isspace():
            continue
        end = len(line)
        for mark in ("{", " ", "\t"):
            at = line.find(mark)
            end = at if 0 <= at < end else end
        if not wanted(line[:end]):
            continue
        match = _LINE.match(line)
        if match is None:
            raise MalformedExposition(f"line {number}: {line[:200]!r}")
        name, written, number_text = match.groups()
        try:
            value = float(number_text)
            labels = _labels(written or "")
        except ValueError as error:
            raise MalformedExposition(f"line {number}: {line[:200]!r}: {error}") from error
        families.setdefault(name, {})[written or ""] = Series(labels, value)
    return families


@lru_cache(maxsize=65_536)
def _labels(written: str) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    at = 0
    while at < len(written):
        match = _LABEL.match(written, at)
        if match is None:
            if written[at:].isspace():
                break
            raise ValueError(f"labels at {written[at : at + 50]!r}")
        value = match.group(2)
        labels[match.group(1)] = _ESCAPE.sub(lambda m: _PLAIN.get(m.group(1), m.group(0)), value) if "\\" in value else value
        at = match.end()
    return labels
