"""What share of a load is served within its SLA where a door turns away whom the replicas cannot take. Pure.

Up to the planned rate everybody is. Beyond it the door keeps the replicas as full as their SLA allows, all the time, and then
they carry more than at the planned rate, which leaves room for chance. In between they are full for a part of the time: what is
turned away then is what a queue of finite room loses (M/M/1/K), of such a room that at the planned rate it loses LOST.
"""

from __future__ import annotations

from math import log
from sys import float_info

LOST = 0.03
"""Share of requests that the planned rate leaves to chance: what planners aim at by default leaves as many."""


def share_served(load: float, planned: float, full: float) -> float:
    """`planned` and `full`: requests/s that are carried with hardly anybody turned away, and when the replicas are kept full.

    >>> share_served(1.0, 1.0, 1.5), share_served(2.0, 1.0, 1.0)
    (1.0, 0.5)
    >>> round(share_served(1.5, 1.0, 1.5), 2), round(share_served(30.0, 1.0, 1.5), 3)
    (0.86, 0.05)
    """
    if load <= planned:
        return 1.0
    least = planned / load
    if planned <= 0.0 or full <= planned * (1.0 + 1e-6):  # nearer than that the room below is noise
        return least
    ratio = max(planned / full, float_info.min)  # absurd rates divide to 0
    room = log(LOST / (1.0 - ratio + LOST * ratio)) / log(ratio)
    # (1 - x) x^K / (1 - x^(K + 1)) for x = load / full; above 1 by powers of 1 / x, which do not overflow.
    over = load / full
    if abs(over - 1.0) < 1e-6:
        lost = 1.0 / (room + 1.0)
    elif over < 1.0:
        lost = (1.0 - over) * over**room / (1.0 - over ** (room + 1.0))
    else:
        lost = (1.0 - 1.0 / over) / (1.0 - over ** -(room + 1.0))
    return max(least, 1.0 - lost)
