"""[I/O] The one place where the router's metric names live, and how they are rendered as Prometheus text.

Plain numbers that are added to on the hot path and turned into text when somebody scrapes. Times are model seconds. Labels
are bounded: models and pools come from the configuration, workers from the endpoints that exist, and at most `MAX_PRIORITIES`
request priorities of a model have a series of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pool_planner.types import Role

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
MAX_PRIORITIES = 16
MAX_KEYS = 200
OTHER = "other"
BLOCK_TOKENS = 16.0

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5)
TTFT_EDGES = (*_SECONDS, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
DURATION_EDGES = (
    0.01,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    45.0,
    60.0,
    90.0,
    120.0,
    300.0,
    600.0,
    1800.0,
)
_MILLISECONDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
ITL_EDGES = (*_MILLISECONDS, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0)
TOKEN_EDGES = tuple(float(base << shift) for shift in range(4, 19) for base in (2, 3))

Outcome = str
OUTCOMES: tuple[Outcome, ...] = ("offered", "admitted", "shed", "completed", "failed", "retried", "cancelled")
Labels = Mapping[str, str]


class Histogram:
    """Counts by upper edge, and the sum."""

    __slots__ = ("_edges", "counts", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._edges, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        running = 0
        for edge, count in zip((*self._edges, None), self.counts, strict=True):
            running += count
            bound = "+Inf" if edge is None else f"{edge:g}" if edge < 1e6 else f"{edge:.0f}"
            yield f'{name}_bucket{{{labels},le="{bound}"}} {running}'
        yield f"{name}_sum{{{labels}}} {self.total!r}"
        yield f"{name}_count{{{labels}}} {running}"


class Latencies:
    """The histograms of whole answers."""

    __slots__ = ("duration", "isl", "itl", "osl", "ttft")

    def __init__(self) -> None:
        self.ttft = Histogram(TTFT_EDGES)
        self.itl = Histogram(ITL_EDGES)
        self.isl = Histogram(TOKEN_EDGES)
        self.osl = Histogram(TOKEN_EDGES)
        self.duration = Histogram(DURATION_EDGES)

    def observe(self, ttft_s: float | None, itl_s: float | None, isl: float, osl: float | None, duration_s: float) -> None:
        """One answer; None: it does not tell."""
        if ttft_s is not None:
            self.ttft.observe(ttft_s)
        if itl_s is not None:
            self.itl.observe(itl_s)
        self.isl.observe(isl)
        if osl is not None:
            self.osl.observe(osl)
        self.duration.observe(duration_s)


class PoolMetrics(Latencies):
    """One pool's series (labels dynamo_namespace, model, pool, role). `offered`: arrivals by request priority, `offered_isl`
    their prompt lengths, estimated: those of the answers say nothing of who was turned away. Of requests whose engine tells it:
    `cache_queried_tokens` of their prompts, of which `cached_tokens` were in its prefix cache."""

    __slots__ = (
        *("cache_queried_tokens", "cached_tokens", "completed", "ejected", "labels", "offered", "offered_isl", "role"),
        *("shed", "started"),
    )

    def __init__(self, *, model: str, pool: str, role: Role, namespace: str) -> None:
        super().__init__()
        self.labels = _labels({"dynamo_namespace": namespace, "model": model.lower(), "pool": pool, "role": role})
        self.role = role
        self.started = 0
        self.offered: dict[str, int] = {"0": 0}
        self.offered_isl = Histogram(TOKEN_EDGES)
        self.completed = 0
        self.shed = 0
        self.ejected = 0
        self.cache_queried_tokens = 0
        self.cached_tokens = 0

    def arrived(self, priority: int, isl: float | None = None) -> None:
        """A request was assigned to the pool, of about so many prompt tokens (None: nobody can tell)."""
        self.started += 1
        name = priority_label(priority, self.offered)
        self.offered[name] = self.offered.get(name, 0) + 1
        if isl is not None:
            self.offered_isl.observe(isl)


class FrontendMetrics(Latencies):
    """One model's series as a frontend shows them, by the namespace of the pool that its requests enter (labels model,
    dynamo_namespace)."""

    __slots__ = ("labels", "requests", "started")

    def __init__(self, *, model: str, namespace: str) -> None:
        super().__init__()
        self.labels = _labels({"dynamo_namespace": namespace, "model": model.lower()})
        self.started = 0
        self.requests = 0


def priority_label(priority: int, known: Mapping[str, object]) -> str:
    """The label of a request priority beside those that have a series already: `OTHER` where they would become too many."""
    name = str(priority)
    return name if name in known or len(known) < MAX_PRIORITIES else OTHER


class OutcomeMetrics:
    """Requests of one model by priority and outcome."""

    __slots__ = ("_counts", "_model")

    def __init__(self, model: str) -> None:
        self._model = model.lower()
        self._counts: dict[str, dict[Outcome, int]] = {"0": dict.fromkeys(OUTCOMES, 0)}

    def of(self, priority: int) -> dict[Outcome, int]:
        """The counts of a priority, to be added to."""
        counts = self._counts.get(str(priority))
        if counts is None:
            counts = self._counts.setdefault(priority_label(priority, self._counts), dict.fromkeys(OUTCOMES, 0))
        return counts

    def by_priority(self) -> Mapping[str, Mapping[Outcome, int]]:
        return self._counts

    def total(self, outcome: Outcome) -> int:
        return sum(counts[outcome] for counts in self._counts.values())

    def lines(self, name: str) -> Iterator[str]:
        for priority, counts in self._counts.items():
            for outcome, count in counts.items():
                labels = _labels({"model": self._model, "priority": priority, "outcome": outcome})
                yield f"{name}{{{labels}}} {count}"


class TenantMetrics:
    """What the holder of one API key has had: answers, and their prompt and answer tokens (as the engines told them, else
    estimated); and how often it was turned away. The first `MAX_KEYS` names of the configuration have series of their own."""

    __slots__ = ("answer_tokens", "labels", "name", "prompt_tokens", "requests", "shed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.labels = _labels({"key": name})
        self.requests = 0
        self.prompt_tokens = 0.0
        self.answer_tokens = 0.0
        self.shed = 0

    def count(self, prompt_tokens: float, answer_tokens: float) -> None:
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.answer_tokens += answer_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGauges:
    """One endpoint at the time of the scrape; None: not known yet, and no series."""

    worker_id: str
    role: Role
    pool: str
    prefill_tokens: float
    decode_blocks: float
    ttft_s: float | None
    isl_tokens: float | None
    itl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGauges:
    """What waits at the router for one pool now, and its endpoints by state."""

    queued_requests: int
    queued_tokens: float
    endpoints: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """Everything that one answer of /metrics shows. `waiting`: requests in the queue by model and priority, `tenants`: with how
    many of each key wait;
    `discovery`: whether the source of a pool's endpoints answers; `duplicates`: whether its own frontend shows the same
    traffic."""

    pools: Iterable[tuple[PoolMetrics, PoolGauges]]
    frontends: Iterable[FrontendMetrics]
    outcomes: Iterable[OutcomeMetrics]
    waiting: Mapping[tuple[str, str], int]
    workers: tuple[WorkerGauges, ...]
    discovery: Iterable[tuple[PoolMetrics, bool]]
    duplicates: Iterable[tuple[PoolMetrics, bool]]
    tenants: Iterable[tuple[TenantMetrics, int]]
    queue_requests: int
    queue_isl_tokens: float
    code: str
    scalars: Mapping[str, tuple[str, str, float]]


def _labels(values: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in values.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


_ROUTER = "dynamo_component_router_"
_FRONTEND = "dynamo_frontend_"
_OWN = "global_planner_router_"
_HISTOGRAMS = (
    ("ttft", "time_to_first_token_seconds", "From arrival to the first token out, model seconds."),
    ("itl", "inter_token_latency_seconds", "Mean time between the tokens of one answer, model seconds."),
    ("isl", "input_sequence_tokens", "Prompt length."),
    ("osl", "output_sequence_tokens", "Answer length."),
    ("duration", "request_duration_seconds", "From arrival to the last byte, model seconds."),
)
# Which histograms a role has: the first token is the prefill's work, the following ones decode's.
_OF_ROLE: Mapping[str, frozenset[str]] = {
    "prefill": frozenset(["ttft", "isl", "duration"]),
    "decode": frozenset(["itl", "isl", "osl", "duration"]),
    "agg": frozenset(["ttft", "itl", "isl", "osl", "duration"]),
}


def render(scrape: Scrape) -> bytes:
    """The Prometheus text of a scrape."""
    out: list[str] = []
    pools = list(scrape.pools)
    frontends = list(scrape.frontends)

    def family(name: str, kind: str, about: str, lines: Iterable[str]) -> None:
        out.append(f"# HELP {name} {about}")
        out.append(f"# TYPE {name} {kind}")
        out.extend(lines)

    for attribute, name, about in (
        ("started", _ROUTER + "requests_started_total", "Requests assigned to the pool on arrival."),
        ("completed", _ROUTER + "requests_total", "Requests that the pool completed."),
        ("shed", _OWN + "shed_total", "Requests assigned to the pool and turned away."),
        (
            "ejected",
            _OWN + "ejections_total",
            "How often an endpoint was left alone because it was far slower than its siblings.",
        ),
        ("cache_queried_tokens", _OWN + "cache_queried_tokens_total", "Prompt tokens whose engine told of its prefix cache."),
        ("cached_tokens", _OWN + "cached_tokens_total", "Those that it found there."),
    ):
        family(name, "counter", about, [f"{name}{{{pool.labels}}} {getattr(pool, attribute)}" for pool, _ in pools])
    name = _OWN + "offered_total"
    offered = [f'{name}{{{p.labels},priority="{label}"}} {count}' for p, _ in pools for label, count in p.offered.items()]
    family(name, "counter", "Requests assigned to the pool on arrival, by priority.", offered)
    name = _OWN + "offered_input_sequence_tokens"
    about = "Their prompt lengths, estimated, whatever becomes of them."
    family(name, "histogram", about, (line for pool, _ in pools for line in pool.offered_isl.lines(name, pool.labels)))
    for attribute, suffix, about in _HISTOGRAMS:
        name = _ROUTER + suffix
        of_role = [pool for pool, _ in pools if attribute in _OF_ROLE[pool.role]]
        family(name, "histogram", about, (x for pool in of_role for x in getattr(pool, attribute).lines(name, pool.labels)))
    name = _OWN + "queued_requests"
    family(
        name, "gauge", "Requests that wait here for the pool.", [f"{name}{{{p.labels}}} {g.queued_requests}" for p, g in pools]
    )
    name = _OWN + "queued_tokens"
    family(name, "gauge", "Their prompt tokens.", [f"{name}{{{p.labels}}} {g.queued_tokens:g}" for p, g in pools])
    name = _OWN + "endpoints"
    states = [f'{name}{{{p.labels},state="{state}"}} {n}' for p, g in pools for state, n in g.endpoints.items()]
    family(name, "gauge", "Endpoints by state.", states)

    for attribute, name, about in (
        ("started", _FRONTEND + "requests_started_total", "Requests received."),
        ("requests", _FRONTEND + "requests_total", "Requests answered."),
    ):
        family(name, "counter", about, [f"{name}{{{one.labels}}} {getattr(one, attribute)}" for one in frontends])
    for attribute, suffix, about in _HISTOGRAMS:
        name = _FRONTEND + suffix
        family(name, "histogram", about, (x for one in frontends for x in getattr(one, attribute).lines(name, one.labels)))

    for attribute, suffix, about in (
        ("prefill_tokens", "active_prefill_tokens", "Prompt tokens sent and not yet prefilled."),
        (
            "decode_blocks",
            "active_decode_blocks",
            f"KV blocks of {BLOCK_TOKENS:g} tokens in use (estimate).",
        ),
        ("ttft_s", "last_time_to_first_token_seconds", "TTFT of the last answer."),
        ("isl_tokens", "last_input_sequence_tokens", "Prompt length of the last answer."),
        ("itl_s", "last_inter_token_latency_seconds", "ITL of the last answer."),
    ):
        name = _FRONTEND + "worker_" + suffix
        family(name, "gauge", about, _worker_lines(name, attribute, scrape.workers))
    name = _FRONTEND + "router_queue_pending_requests"
    family(name, "gauge", "Requests that wait at the router.", [f"{name} {scrape.queue_requests}"])
    name = _FRONTEND + "router_queue_pending_isl_tokens"
    family(name, "gauge", "Their prompt tokens.", [f"{name} {scrape.queue_isl_tokens:g}"])
    name = _OWN + "requests_total"
    family(name, "counter", "Requests by outcome.", (line for one in scrape.outcomes for line in one.lines(name)))
    name = _OWN + "waiting_requests"
    waiting = [
        f"{name}{{{_labels({'model': model.lower(), 'priority': priority})}}} {count}"
        for (model, priority), count in scrape.waiting.items()
    ]
    family(name, "gauge", "Requests that wait for their turn, by priority.", waiting)
    name = _OWN + "discovery_up"
    up = [f"{name}{{{pool.labels}}} {int(answers)}" for pool, answers in scrape.discovery]
    family(name, "gauge", "1 while the source of the pool's endpoints answers; else its last answer holds.", up)
    name = _OWN + "duplicate_source"
    twice = [f"{name}{{{pool.labels}}} {int(found)}" for pool, found in scrape.duplicates]
    family(name, "gauge", "1 while the pool's own frontend shows the traffic that is shown here.", twice)
    tenants = list(scrape.tenants)
    for attribute, about in (
        ("requests", "Answers by API key."),
        ("prompt_tokens", "Prompt tokens of the answers, by API key."),
        ("answer_tokens", "Tokens of the answers, by API key."),
        ("shed", "Requests turned away, by API key."),
    ):
        name = f"{_OWN}key_{attribute}_total"
        family(name, "counter", about, [f"{name}{{{one.labels}}} {_number(getattr(one, attribute))}" for one, _ in tenants])
    name = _OWN + "key_waiting_requests"
    family(name, "gauge", "Requests that wait for their turn, by API key.", [f"{name}{{{t.labels}}} {n}" for t, n in tenants])
    name = _OWN + "build_info"
    family(name, "gauge", "Whether the hot path is compiled code or plain Python.", [f'{name}{{code="{scrape.code}"}} 1'])
    for name, (kind, about, value) in scrape.scalars.items():
        family(_OWN + name, kind, about, [f"{_OWN}{name} {value:g}"])
    return ("\n".join(out) + "\n").encode()


def _number(value: float) -> str:
    """As few digits as tell it exactly: `:g` would round a count of millions."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _worker_lines(name: str, attribute: str, workers: Iterable[WorkerGauges]) -> Iterator[str]:
    for worker in workers:
        value = getattr(worker, attribute)
        if value is not None:
            kind = "prefill" if worker.role == "prefill" else "decode"
            labels = {"worker_id": worker.worker_id, "dp_rank": "0", "worker_type": kind, "pool": worker.pool}
            yield f"{name}{{{_labels(labels)}}} {value!r}"
