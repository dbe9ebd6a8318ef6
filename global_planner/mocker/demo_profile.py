"""The demo engine: a made-up accelerator, slow on purpose, so that two cores can carry the whole system. Pure.

A few tokens a second: a prompt of 512 tokens takes 0.6 s and one of 4k 3.2 s; a sequence alone gets a token every quarter of
a second, and 12 sequences of 1k context cross 500 ms. The files under `examples/two-models` are this module's output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

PREFILL_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
CONTEXTS = (64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEngine:
    """TTFT = start + token x ISL + pair x ISL^2. ITL = step + sequence x batch + kv x tokens in the KV cache. All in ms."""

    gpus: int = 1
    ttft_start_ms: float = 200.0
    ttft_token_ms: float = 0.72
    ttft_pair_ms: float = 2e-6
    itl_step_ms: float = 225.0
    itl_sequence_ms: float = 20.0
    itl_kv_ms: float = 0.0022
    max_kv_tokens: int = 262_144

    def ttft_ms(self, isl: int) -> float:
        return self.ttft_start_ms + self.ttft_token_ms * isl + self.ttft_pair_ms * isl**2

    def itl_ms(self, batch: int, context: int) -> float:
        return self.itl_step_ms + self.itl_sequence_ms * batch + self.itl_kv_ms * batch * context


# What tensor parallelism over two GPUs makes of it: 1.85 x the speed, and memory for twice the KV and more.
ONE_GPU = DemoEngine()
TWO_GPUS = DemoEngine(
    gpus=2,
    ttft_start_ms=110.0,
    ttft_token_ms=0.39,
    ttft_pair_ms=1.08e-6,
    itl_step_ms=125.0,
    itl_sequence_ms=11.0,
    itl_kv_ms=0.0012,
    max_kv_tokens=589_824,
)


def prefill_raw(engine: DemoEngine) -> dict[str, object]:
    """Columns of prefill_raw_data.json: ISL in tokens, TTFT in ms, throughput in tokens/s/GPU."""
    ttft = [round(engine.ttft_ms(isl), 3) for isl in PREFILL_LENGTHS]
    return {
        "prefill_isl": list(PREFILL_LENGTHS),
        "prefill_ttft": ttft,
        "prefill_thpt_per_gpu": [round(isl / ms * 1e3 / engine.gpus, 3) for isl, ms in zip(PREFILL_LENGTHS, ttft, strict=True)],
    }


def decode_raw(engine: DemoEngine) -> dict[str, object]:
    """Columns of decode_raw_data.json, one row for every (context, batch) that fits the KV cache."""
    rows = [(context, batch) for context in CONTEXTS for batch in BATCHES if context * batch <= engine.max_kv_tokens]
    itl = [round(engine.itl_ms(batch, context), 3) for context, batch in rows]
    return {
        "x_kv_usage": [round(context * batch / engine.max_kv_tokens, 9) for context, batch in rows],
        "y_context_length": [context for context, _ in rows],
        "z_itl": itl,
        "z_thpt_per_gpu": [round(batch / ms * 1e3 / engine.gpus, 4) for (_, batch), ms in zip(rows, itl, strict=True)],
        "max_kv_tokens": engine.max_kv_tokens,
    }


def files(engine: DemoEngine) -> dict[str, str]:
    """File name -> text of a profile directory: one line a column."""
    return {
        name: "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(column)}" for key, column in raw.items()) + "\n}\n"
        for name, raw in (("prefill_raw_data.json", prefill_raw(engine)), ("decode_raw_data.json", decode_raw(engine)))
    }
