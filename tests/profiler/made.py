"""An estimator of made-up engines: those of the demo, whatever the backend; more GPUs are faster, and worth less each."""

from __future__ import annotations

from global_planner.mocker.demo_profile import ONE_GPU
from pool_planner.profiler.shapes import EngineShape


class DemoEngines:
    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        return ONE_GPU.ttft_ms(isl) / shape.gpus**0.8

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        return ONE_GPU.itl_ms(batch, context) / shape.gpus**0.7

    def kv_tokens(self, shape: EngineShape) -> int:
        return ONE_GPU.max_kv_tokens * shape.gpus
