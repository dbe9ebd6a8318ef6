"""Prometheus text: families in the order of their first sample. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsText:
    """Each family has its help and type once. What is unknown (None) or not finite has no sample."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def gauge(self, name: str, about: str, labels: Mapping[str, str], value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._sample("gauge", name, about, labels, value)

    def _sample(self, kind: str, name: str, about: str, labels: Mapping[str, str], value: float) -> None:
        lines = self._families.setdefault(name, [f"# HELP {name} {about}", f"# TYPE {name} {kind}"])
        inside = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}")

    def counter(self, name: str, about: str, labels: Mapping[str, str], value: float) -> None:
        self._sample("counter", name, about, labels, value)

    def done(self) -> str:
        return "".join(line + "\n" for lines in self._families.values() for line in lines)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
