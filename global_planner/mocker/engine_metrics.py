"""What a mock engine counts, and its text for Prometheus, under vLLM's names. Times are model seconds. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from global_planner.replay.engine_cost import BLOCK_TOKENS
from global_planner.replay.engine_spec import EngineLoad

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_E2E_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class Histogram:
    """Cumulative buckets, sum and count of one series."""

    __slots__ = ("_counts", "_edges", "count", "sum")

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = tuple(edges)
        self._counts = [0] * (len(edges) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._edges, value)] += times
        self.sum += value * times
        self.count += times

    def lines(self, name: str, labels: str) -> list[str]:
        lines = [f"# TYPE {name} histogram"]
        below = 0
        for edge, count in zip((*map(float, self._edges), "+Inf"), self._counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{{labels},le="{edge}"}} {below}')
        return [*lines, f"{name}_sum{{{labels}}} {self.sum!r}", f"{name}_count{{{labels}}} {self.count}"]


class EngineMetrics:
    """Counts since the engine started."""

    __slots__ = (
        *("_cache_config", "_labels", "e2e", "generation_tokens", "itl", "prefix_hits", "prefix_queries", "prompt_tokens"),
        *("request_generation", "request_prompt", "ttft"),
    )

    def __init__(self, model: str, kv_capacity_tokens: int | None = None) -> None:
        """`kv_capacity_tokens`: what the KV cache holds; None: unlimited, and nothing is told of it."""
        escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._labels = f'model_name="{escaped}",engine="0"'
        self._cache_config: list[str] = []
        if kv_capacity_tokens is not None:
            blocks = f'block_size="{BLOCK_TOKENS}",num_gpu_blocks="{kv_capacity_tokens // BLOCK_TOKENS}"'
            told = f'vllm:cache_config_info{{{blocks},engine="0"}} 1'
            self._cache_config = ["# TYPE vllm:cache_config_info gauge", told]
        self.ttft = Histogram(_TTFT_S)
        self.itl = Histogram(_ITL_S)
        self.e2e = Histogram(_E2E_S)
        self.request_prompt = Histogram(_TOKENS)
        self.request_generation = Histogram(_TOKENS)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefix_queries = 0  # prompt tokens that were looked for in the prefix cache, and those found there
        self.prefix_hits = 0

    def text(self, load: EngineLoad) -> bytes:
        """The exposition text, format 0.0.4."""
        labels = self._labels
        lines = list(self._cache_config)
        for name, kind, value in (
            ("num_requests_running", "gauge", load.running),
            ("num_requests_waiting", "gauge", load.waiting),
            ("kv_cache_usage_perc", "gauge", load.kv_usage),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generation_tokens_total", "counter", self.generation_tokens),
            ("prefix_cache_queries_total", "counter", self.prefix_queries),
            ("prefix_cache_hits_total", "counter", self.prefix_hits),
            ("num_preemptions_total", "counter", load.preemptions),
        ):
            lines += [f"# TYPE vllm:{name} {kind}", f"vllm:{name}{{{labels}}} {value}"]
        done = self.request_generation.count
        lines += [
            "# TYPE vllm:request_success_total counter",
            f'vllm:request_success_total{{{labels},finished_reason="length"}} {done}',
        ]
        for name, histogram in (
            ("time_to_first_token_seconds", self.ttft),
            ("inter_token_latency_seconds", self.itl),
            ("e2e_request_latency_seconds", self.e2e),
            ("request_prompt_tokens", self.request_prompt),
            ("request_generation_tokens", self.request_generation),
        ):
            lines += histogram.lines(f"vllm:{name}", labels)
        return ("\n".join(lines) + "\n").encode()
