"""[I/O] Measuring one point of an engine until it is known well enough, or often enough.

A decode point is read while all its sequences run: from the first token of the last one to the end of the first one. Prompts
computed earlier are done by then, so what is timed is decoding alone, at the batch and the context that the point names.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pool_planner.profiler.endpoint import Answer, Endpoint, EndpointError, TooLong
from pool_planner.profiler.measure_plan import RETRIES, Limits, Point, PrefillPoint, key
from pool_planner.profiler.record import Record
from pool_planner.profiler.shapes import EstimateError
from pool_planner.profiler.statistics import summarise
from pool_planner.profiler.sweep import DecodePoint

STEP_TOKENS = 2048  # prompt tokens of a step at least: so many steps pass for running sequences while prompts are computed
SLACK_TOKENS = 8
LEAST_WINDOW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Decoding while all ran: mean ITL (ms) of the sequences, their mean context (tokens), and the fewest tokens of one."""

    itl_ms: float
    context: float
    tokens: int


def steady(answers: list[Answer]) -> Steady | None:
    """What the answers show while all ran; None where they did not run together."""
    begin = max(answer.at_s[0] for answer in answers)
    end = min(answer.at_s[-1] for answer in answers)
    itl_ms, contexts, counts = [], [], []
    for answer in answers:
        inside = [number for number, at_s in enumerate(answer.at_s) if begin <= at_s <= end]
        if len(inside) < 2:
            return None
        first, last = inside[0], inside[-1]
        before, tokens = answer.tokens_by(first), answer.tokens_by(last) - answer.tokens_by(first)
        itl_ms.append(1e3 * (answer.at_s[last] - answer.at_s[first]) / tokens)
        contexts.append(answer.prompt_tokens + before + tokens / 2)
        counts.append(tokens)
    return Steady(itl_ms=fmean(itl_ms), context=fmean(contexts), tokens=min(counts))


class Bench:
    """Measures points of one engine and records them. `prefix` tells this engine's points from others' in the record."""

    def __init__(
        self,
        endpoint: Endpoint,
        record: Record,
        limits: Limits,
        *,
        prefix: str,
        kv_tokens: int,
    ) -> None:
        self._endpoint = endpoint
        self._record = record
        self._limits = limits
        self._prefix = prefix
        self._kv_tokens = kv_tokens

    async def median_ms(self, point: Point) -> float:
        """TTFT or ITL of a point, from the record where it was measured before. Raises EndpointError, EstimateError."""
        name = f"{self._prefix} {key(point)}"
        found = self._record.points.get(name)
        if found is None:
            try:
                found = await (self._prefill(point) if isinstance(point, PrefillPoint) else self._decode(point))
            except TooLong as error:
                found = {"problem": str(error)}
            self._record.add(name, found)
        if "problem" in found:
            raise EstimateError(str(found["problem"]))
        return float(found["median"])

    async def _prefill(self, point: PrefillPoint) -> dict[str, Any]:
        values: list[float] = []
        slowest: list[float] = []
        await self._endpoint.complete(point.isl, 1)
        while not self._enough(values):
            answers = await self._together([(point.isl, 1)] * point.depth)
            values.append(1e3 * fmean(answer.ttft_s for answer in answers))
            slowest.append(1e3 * max(answer.ttft_s for answer in answers))
        result = _result(values, self._limits)
        return result if point.depth == 1 else {**result, "slowest": summarise(slowest).median}

    async def _decode(self, point: DecodePoint) -> dict[str, Any]:
        """The first run warms up and tells how far the sequences get while others' prompts are computed; prompts and answers
        are fitted to it, so that the point is measured at its context."""
        room = self._kv_tokens // point.batch - point.context - SLACK_TOKENS
        window = max(LEAST_WINDOW, min(self._limits.window, 2 * room))
        lead = -(-point.batch * point.context // STEP_TOKENS) + 2
        prompt = max(1, point.context - lead - window // 2)
        values: list[float] = []
        contexts: list[float] = []
        retries, warm = 0, False
        while not self._enough(values):
            answers = await self._together([(prompt, 1 + lead + window + SLACK_TOKENS)] * point.batch)
            found = steady(answers)
            if found is None or found.tokens < window // 2:
                retries += 1
                if retries > RETRIES:
                    return {"problem": f"{key(point)}: the sequences did not run together for {window} tokens"}
                lead = 2 * lead + window
                continue
            if warm:
                values.append(found.itl_ms)
                contexts.append(found.context)
            else:
                warm = True
                prompt = max(1, round(prompt + point.context - found.context))
        return {**_result(values, self._limits), "context": fmean(contexts)}

    async def _together(self, requests: list[tuple[int, int]]) -> list[Answer]:
        """All at once; when one fails the others are ended before its error is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._endpoint.complete(*request)) for request in requests]
        except* EndpointError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    def _enough(self, values: list[float]) -> bool:
        if len(values) < self._limits.least:
            return False
        return len(values) >= self._limits.most or summarise(values).is_tight(self._limits.tight)


def _result(values: list[float], limits: Limits) -> dict[str, Any]:
    summary = summarise(values)
    return {
        "values": [round(value, 4) for value in values],
        "median": summary.median,
        "half_width": None if summary.half_width == float("inf") else summary.half_width,
        "tight": summary.is_tight(limits.tight),
        "outliers": list(summary.outliers),
    }


def _first(errors: BaseExceptionGroup[EndpointError]) -> EndpointError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
