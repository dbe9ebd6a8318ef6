"""Which replica of a pool is far slower than its siblings, and for how long it is left alone. Pure.

An engine that fails is taken out by its failures (`router.endpoints`). One that answers, but several times slower than the
others of its pool (a hot card, a bad link, a neighbour that takes the memory's bandwidth), never fails, and spoils a share of
all requests. Of every endpoint the last answers are kept: seconds of the first token for a thousand prompt tokens, seconds of
an output token. An endpoint whose median is `factor` times that of its siblings (the median of their medians), in answers that
came over `for_s`, is ejected for `eject_s`; then it is tried with single requests, and comes back when those are as fast as
the siblings', else it stays away twice as long. At most `max_share` of a pool is away at a time, so a pool of two never ejects:
of two nobody can say which one is wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from router.config import OutlierConfig

Signal = Literal["ttft", "itl"]
# A difference that no user feels is none, whatever the factor: seconds a thousand prompt tokens, seconds an output token.
FLOOR_S: dict[Signal, float] = {"ttft": 0.1, "itl": 0.01}
# The part of the first token's time that does not grow with the prompt counts as so many tokens.
LEAST_TOKENS = 512.0
CHECK_S = 1.0


def per_thousand(ttft_s: float, isl_tokens: float) -> float:
    """The first token's time as a sample of "ttft".

    >>> per_thousand(0.5, 2000.0)
    0.25
    """
    return ttft_s * 1000.0 / max(LEAST_TOKENS, isl_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`action`: eject (away until `until_s`), or restore (it is as good as any). `own` and `siblings` are the medians that were
    compared, in the units of `signal`; None where nothing was compared."""

    endpoint: str
    action: Literal["eject", "restore"]
    until_s: float = 0.0
    signal: Signal | None = None
    own: float | None = None
    siblings: float | None = None


class _Member:
    """One endpoint: its samples, since when it is slow and how many answers said so, and how long it was away last."""

    __slots__ = ("away_s", "on_trial", "out", "said", "samples", "slow_since_s", "until_s")

    def __init__(self, size: int) -> None:
        self.samples: dict[Signal, deque[float]] = {"ttft": deque(maxlen=size), "itl": deque(maxlen=size)}
        self.slow_since_s: float | None = None
        self.said = 0
        self.out = False
        self.on_trial = False
        self.until_s = 0.0
        self.away_s = 0.0

    def forget(self) -> None:
        for samples in self.samples.values():
            samples.clear()
        self.slow_since_s = None
        self.said = 0


class Outliers:
    """The slow endpoints of one pool. `now` is model seconds and never goes back."""

    def __init__(self, config: OutlierConfig) -> None:
        self._config = config
        self._members: dict[str, _Member] = {}
        self._check_s = 0.0

    @property
    def out(self) -> list[str]:
        """Who is away, the longest first; those on trial among them."""
        away = [(one.until_s, name) for name, one in self._members.items() if one.out]
        return [name for _, name in sorted(away)]

    def on_trial(self, endpoint: str) -> bool:
        """Whether it is away, but gets single requests."""
        member = self._members.get(endpoint)
        return member is not None and member.on_trial

    def present(self, endpoints: Iterable[str]) -> list[Verdict]:
        """These are the pool's endpoints that could serve. Others are forgotten, and when fewer are left than may be away,
        those that have been away longest come back."""
        known = self._members
        self._members = {name: known.get(name) or _Member(self._config.samples) for name in endpoints}
        surplus = len(self.out) - self._most_away()
        return [self._restore(name) for name in self.out[: max(0, surplus)]]

    def expired(self, now: float) -> list[str]:
        """Who has been away long enough: on trial from now on."""
        due = [name for name, one in self._members.items() if one.out and not one.on_trial and now >= one.until_s]
        for name in due:
            self._members[name].on_trial = True
            self._members[name].forget()
        return due

    def record(self, endpoint: str, now: float, *, ttft: float | None = None, itl: float | None = None) -> list[Verdict]:
        """An answer of an endpoint, as samples; what follows from it."""
        member = self._members.get(endpoint)
        if member is None:
            return []
        if ttft is not None:
            member.samples["ttft"].append(ttft)
        if itl is not None:
            member.samples["itl"].append(itl)
        member.said += 1
        if member.on_trial:
            return self._tried(endpoint, member, now)
        if now < self._check_s:
            return []
        self._check_s = now + CHECK_S
        return self._check(now)

    def _check(self, now: float) -> list[Verdict]:
        config = self._config
        medians = {signal: self._medians(signal) for signal in FLOOR_S}
        if not any(own and max(own.values()) > config.factor * min(own.values()) for own in medians.values()):
            # As it nearly always is: nobody is `factor` times slower than anybody.
            for member in self._members.values():
                if not member.out:
                    member.slow_since_s = None
            return []
        found = []
        for name, member in self._members.items():
            if member.out:
                continue
            slower = next((one for signal in FLOOR_S if (one := self._slower(signal, name, medians[signal]))), None)
            if slower is None:
                member.slow_since_s = None
            elif member.slow_since_s is None:
                member.slow_since_s, member.said = now, 0
            elif (
                now >= member.slow_since_s + config.for_s
                and member.said >= config.samples // 2
                and len(self.out) < self._most_away()
            ):
                found.append(self._eject(name, member, now, slower))
        return found

    def _tried(self, name: str, member: _Member, now: float) -> list[Verdict]:
        """On trial: half as many answers as usual decide."""
        signals: list[Signal] = [
            signal for signal, samples in member.samples.items() if len(samples) >= max(1, self._config.samples // 2)
        ]
        if not signals:
            return []
        slower = None
        for signal in signals:
            medians = {**self._medians(signal), name: median(member.samples[signal])}
            slower = slower or self._slower(signal, name, medians)
        return [self._restore(name) if slower is None else self._eject(name, member, now, slower)]

    def _medians(self, signal: Signal) -> dict[str, float]:
        return {
            name: median(one.samples[signal])
            for name, one in self._members.items()
            if not one.out and len(one.samples[signal]) >= self._config.samples
        }

    def _slower(self, signal: Signal, name: str, medians: dict[str, float]) -> tuple[Signal, float, float] | None:
        """(signal, own median, siblings') where an endpoint is far slower than at least two siblings."""
        own = medians.get(name)
        others = [value for other, value in medians.items() if other != name]
        if own is None or len(others) < 2:
            return None
        usual = median(others)
        return (signal, own, usual) if own > self._config.factor * usual and own - usual > FLOOR_S[signal] else None

    def _most_away(self) -> int:
        return int(self._config.max_share * len(self._members) + 1e-9)

    def _eject(self, name: str, member: _Member, now: float, why: tuple[Signal, float, float]) -> Verdict:
        config = self._config
        again = member.out or (now < member.until_s + config.eject_max_s and member.away_s > 0.0)
        member.away_s = min(config.eject_max_s, 2.0 * member.away_s if again else config.eject_s)
        member.out, member.on_trial, member.until_s = True, False, now + member.away_s
        member.forget()
        signal, own, siblings = why
        return Verdict(endpoint=name, action="eject", until_s=member.until_s, signal=signal, own=own, siblings=siblings)

    def _restore(self, name: str) -> Verdict:
        member = self._members[name]
        member.out = member.on_trial = False
        member.forget()
        return Verdict(endpoint=name, action="restore")
