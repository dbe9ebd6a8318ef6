"""The contenders by the names that people use. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from global_planner.replay.baselines import existing, hpa, independent, oracle, static, static_start
from global_planner.replay.contenders import Contender, first_come, first_come_door, objective

POLICIES: Mapping[str, tuple[Callable[[], Contender], str]] = {
    "goodput": (lambda: objective("goodput"), "ours: the most requests within their SLA, by weight and priority"),
    "max_min": (lambda: objective("max_min"), "ours: the worst-off group as well off as can be"),
    "proportional": (lambda: objective("proportional"), "our planners; everybody gets the same share of what it wants"),
    "first_come": (first_come, "our planners ask one by one, and get all or nothing; nobody limits what is admitted"),
    "first_come_door": (first_come_door, "the same behind our router's door: how much is arbitration alone"),
    "existing": (existing, "an existing system: the guide's planner as it is, and the mediator of first_come"),
    "independent": (independent, "our planners; each pool alone with a fixed share of the budget"),
    "hpa": (hpa, "Kubernetes' autoscaler on requests in flight, one for each pool"),
    "static_peak": (lambda: static("static_peak", peak=True), "a fixed fleet, sized for the busiest 10 s of each pool"),
    "static_mean": (lambda: static("static_mean", peak=False), "a fixed fleet, sized for the mean load"),
    "static_start": (static_start, "the fleet that stands at the start, all the time"),
    "oracle": (oracle, "knows the trace: the bound"),
}


def names_of(text: str) -> tuple[str, ...]:
    """The policies of `A,B,…`, each once. Raises ValueError with the names that there are.

    >>> names_of("goodput, hpa,goodput")
    ('goodput', 'hpa')
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or (text,):
        policy(name)
    return names


def policy(name: str) -> Contender:
    """The contender of that name. Raises ValueError with the names that there are."""
    if name not in POLICIES:
        raise ValueError(f"no policy {name!r} (has: {', '.join(POLICIES)})")
    return POLICIES[name][0]()
