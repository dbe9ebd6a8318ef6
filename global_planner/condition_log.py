"""Which conditions are worth a line in the log: those that have come and those that have gone. Pure.

A condition is said in every round in which it holds, with numbers that change; a log that repeated them would hide the next
one. So a line is written when one begins, when it has ended, and again every ten minutes while it lasts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

AGAIN_S = 600.0
MOST_LINES = 50
"""Of one round: a cluster that cannot be read says one thing of each of hundreds of pools."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(slots=True)
class ConditionLog:
    """Remembers what was said. Conditions that differ in numbers alone are the same one."""

    _said: dict[str, tuple[float, str]] = field(default_factory=dict)

    def lines(self, conditions: Sequence[str], now_s: float) -> list[str]:
        """What is to be written after a round with these conditions.

        >>> log = ConditionLog()
        >>> log.lines(["chat does not grow for another 40 s"], 0.0)
        ['chat does not grow for another 40 s']
        >>> log.lines(["chat does not grow for another 30 s"], 10.0)
        []
        >>> log.lines([], 20.0)
        ['no longer: chat does not grow for another 40 s']
        """
        now = {_NUMBER.sub("#", text): text for text in conditions}
        found = []
        for key, text in now.items():
            if now_s - self._said.get(key, (-AGAIN_S, ""))[0] >= AGAIN_S:
                self._said[key] = (now_s, text)
                found.append(text)
        ended = [key for key in self._said if key not in now]
        found += [f"no longer: {self._said.pop(key)[1]}" for key in ended]
        more = len(found) - MOST_LINES
        return found if more <= 0 else [*found[:MOST_LINES], f"and {more} more"]
