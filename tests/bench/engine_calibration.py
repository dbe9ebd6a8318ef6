"""An engine from what a rate sweep of one server showed: five numbers with a physical meaning, fitted in closed form. Pure.

Mean values of a server that batches continuously, at lambda requests/s of `isl` prompt and `osl` answer tokens:

    step S      = decode(B) + lambda S prompt          every step computes the prompts that came during the one before
    running B   = lambda (osl - 1) S                   Little's law
    TTFT        = front + S/2 + decode(B) + prompt (1 + lambda S)    beside others: the rest of the step that runs, then its own
                = front + start + prompt                             alone: nobody decodes, with probability exp(-B)

The closed form is for the fit only. What is judged is the engine model itself, simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import least_squares

from global_planner.replay.engine_spec import EngineSpec
from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve
from pool_planner.performance.profile import Profile

CALM = 0.75  # of the slots: above it requests wait for a slot, which the closed form does not know
# Before any measurement of an idle server: a step of prompts alone costs two decode steps, because it reads the same weights
# and is launched kernel by kernel, without the captured graph that decoding has. Weight in logarithms.
START_STEPS = 2.0
PRIOR = 0.3
BOUNDS = ([0.0, 0.5, 0.0, 0.5, 0.0], [80.0, 60.0, 0.3, 60.0, 1.0])
SCALE = [10.0, 5.0, 0.01, 5.0, 0.02]
KV_TOKENS = 400_000  # an H100-80GB beside 16 GB of weights, 128 KiB a token; far from binding here
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One rate of a sweep: means over its requests. `step_ms` is the time between two tokens of a request."""

    rate_rps: float
    requests: int
    isl: int
    osl: int
    ttft_ms: float
    step_ms: float

    @property
    def running(self) -> float:
        """Sequences that decode, by Little's law."""
        return self.rate_rps * (self.osl - 1) * self.step_ms / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`front_ms`: HTTP, tokenizer and the way to the scheduler. `start_ms`: a step that holds prompts only. `token_ms`: a
    prompt token. `step_ms` + `sequence_ms` x sequences: a decode step."""

    front_ms: float
    start_ms: float
    token_ms: float
    step_ms: float
    sequence_ms: float

    def closed_form(self, stage: Stage) -> tuple[float, float]:
        """TTFT and step (ms) at the stage's rate, by the formulas above."""
        per_ms, prompt = stage.rate_rps / 1e3, self.token_ms * stage.isl
        idle = 1.0 - per_ms * (prompt + self.sequence_ms * (stage.osl - 1))
        step = self.step_ms / max(idle, 0.02)
        running = per_ms * (stage.osl - 1) * step
        decode = self.step_ms + self.sequence_ms * running
        alone = math.exp(-running)
        beside = step / 2 + decode + prompt * (1 + per_ms * step)
        return self.front_ms + alone * (self.start_ms + prompt) + (1 - alone) * beside, step

    def spec(self, *, isl: int, osl: int, slots: int) -> EngineSpec:
        """The engine with curves around one shape of requests, and the server's number of slots."""
        lengths = [isl / 4, isl / 2, isl, 2 * isl, 8 * isl]
        ttft = [self.start_ms + self.token_ms * tokens for tokens in lengths]
        context = isl + osl / 2
        itl = [self.step_ms + self.sequence_ms * batch for batch in BATCHES]
        return EngineSpec(
            role="agg",
            profile=Profile(
                prefill=PrefillCurve(
                    isl_tokens=lengths, ttft_ms=ttft, thpt_per_gpu=[1e3 * n / t for n, t in zip(lengths, ttft, strict=True)]
                ),
                decode=DecodeCurve(
                    kv_usage=[batch * context / KV_TOKENS for batch in BATCHES],
                    context_tokens=[context] * len(BATCHES),
                    itl_ms=itl,
                    thpt_per_gpu=[1e3 * batch / ms for batch, ms in zip(BATCHES, itl, strict=True)],
                    max_kv_tokens=KV_TOKENS,
                ),
            ),
            max_num_seqs=slots,
            front_ms=self.front_ms,
        )  # fmt: skip


def calibrate(stages: Sequence[Stage], slots: int) -> Calibration:
    """The calibration whose closed form is nearest to the stages, in squares of relative errors. TTFT where slots are scarce
    is left out: there it is waiting. Needs two stages at least."""

    def errors(numbers: Sequence[float]) -> list[float]:
        tried = _made(numbers)
        found = [PRIOR * math.log(tried.start_ms / (START_STEPS * tried.step_ms))]
        for stage in stages:
            ttft, step = tried.closed_form(stage)
            found.append(math.log(step / stage.step_ms))
            if stage.running < CALM * slots:
                found.append(math.log(ttft / stage.ttft_ms))
        return found

    fits = [
        least_squares(errors, [10.0, 12.0, token, 7.0, sequence], bounds=BOUNDS, x_scale=SCALE)
        for token, sequence in ((0.02, 0.03), (0.005, 0.01), (0.04, 0.01), (0.01, 0.08))
    ]
    return _made(min(fits, key=lambda fit: float(fit.cost)).x.tolist())


def _made(numbers: Sequence[float]) -> Calibration:
    front, start, token, step, sequence = (float(number) for number in numbers)
    return Calibration(front_ms=front, start_ms=start, token_ms=token, step_ms=step, sequence_ms=sequence)
