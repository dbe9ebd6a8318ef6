"""What the planners see of a replayed pool: observations as the live ones would be made from the router's metrics. Pure.

Counts are increases over the tick, means are over what was answered in it, histograms have the router's buckets, and the
workers' gauges are those that the router exposes, averaged over the samples of a tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from global_planner.replay.lanes import Flight
from global_planner.replay.stations import Endpoint, Station
from pool_planner.metrics import workers
from pool_planner.metrics.workers import Gauges
from pool_planner.types import Histogram, Observation
from router.metrics import BLOCK_TOKENS, TOKEN_EDGES, priority_label

_EDGES = np.asarray(TOKEN_EDGES)


class PoolSense:
    """Observes one station, tick by tick."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._started = station.started
        self._offered = dict(station.offered)
        self._shed = station.shed
        self._samples: list[Mapping[str, Gauges]] = []

    def sample(self, flights: Mapping[str, Flight], now: float) -> None:
        """Read the workers' gauges."""
        station = self._station
        blocks: dict[str, float] = {}
        if station.role != "prefill":
            for endpoint in station.ready:
                blocks[endpoint.id] = 0.0
            for flight in flights.values():
                endpoint_id = flight.at.id if flight.at is not None else ""
                if endpoint_id in blocks:
                    blocks[endpoint_id] += (flight.isl + _generated(flight, now)) / BLOCK_TOKENS
        self._samples.append(
            {one.id: _gauges(one, blocks.get(one.id, 0.0)) for one in station.endpoints.values() if one.engine}
        )

    def observe(self, now: float, interval_s: float) -> Observation:
        """What was seen over (now - interval_s, now]."""
        station = self._station
        requests, shed = station.started - self._started, station.shed - self._shed
        self._started, self._shed = station.started, station.shed
        offered, self._offered = self._offered, dict(station.offered)
        answers, station.answers = station.answers, []
        prompts, station.prompts = station.prompts, []
        samples, self._samples = self._samples, []
        observation = {
            "pool": station.name,
            "at_s": now,
            "interval_s": interval_s,
            "front_door_up": True,
            "requests": float(requests),
            "completed": float(len(answers)),
            "shed": float(shed),
            "queued_requests": float(station.waiting),
            "queued_tokens": station.waiting_tokens,
            "workers": workers.average(samples) if samples else None,
            "requests_by_priority": _by_priority(offered, station.offered),
        }
        if prompts:
            isl = np.array(prompts)
            observation |= {"isl_tokens": float(isl.mean()), "isl_histogram": _histogram(isl)}
        if answers:
            isl, osl, ttft_s, itl_s, duration_s = (np.array(column) for column in zip(*answers, strict=True))
            streams = itl_s == itl_s
            observation["duration_s"] = float(duration_s.mean())
            if not prompts:
                observation |= {"isl_tokens": float(isl.mean()), "isl_histogram": _histogram(isl)}
            if station.role != "decode":
                observation["ttft_ms"] = 1e3 * float(ttft_s.mean())
            if station.role != "prefill":
                observation |= {"osl_tokens": float(osl.mean()), "osl_histogram": _histogram(osl)}
                if streams.any():
                    observation["itl_ms"] = 1e3 * float(itl_s[streams].mean())
        return Observation(**observation)  # type: ignore[arg-type]


def _by_priority(before: Mapping[int, int], after: Mapping[int, int]) -> Mapping[str, float]:
    """Arrivals by the label that the router gives a priority; those beyond the labels that it has go together."""
    labels: dict[str, float] = {}
    for priority, count in after.items():
        label = priority_label(priority, labels)
        labels[label] = labels.get(label, 0.0) + count - before.get(priority, 0)
    return labels


def _generated(flight: Flight, now: float) -> float:
    """Tokens that an answer has so far; the router counts the chunks that it passes on."""
    if flight.first_s != flight.first_s or flight.at is None or flight.at.engine is None:
        return 0.0
    return float(flight.at.engine.tokens_done(now, flight.id))


def _gauges(endpoint: Endpoint, blocks: float) -> Gauges:
    prefill = endpoint.station.role == "prefill"
    gauges = {
        "active_prefill_tokens": endpoint.outstanding_tokens if prefill else 0.0,
        "active_decode_blocks": 0.0 if prefill else blocks,
        "last_ttft_s": endpoint.ttft_s,
        "last_isl_tokens": endpoint.isl_tokens,
        "last_itl_s": endpoint.itl_s,
    }
    return {name: value for name, value in gauges.items() if value is not None}


def _histogram(tokens: np.ndarray) -> Histogram:
    counts = np.bincount(np.searchsorted(_EDGES, tokens, side="left"), minlength=_EDGES.size + 1)
    return Histogram(edges=TOKEN_EDGES, counts=tuple(float(count) for count in counts))


def in_flight(station: Station) -> int:
    """Requests that are with the pool's engines now or wait for it."""
    return station.waiting + sum(endpoint.in_flight for endpoint in station.endpoints.values())


def sample_times(now: float, tick_s: float, samples: int) -> Sequence[float]:
    """When the gauges are read in the tick that begins at `now`; the last time is its end."""
    return [now + tick_s * (index + 1) / samples for index in range(samples)]
