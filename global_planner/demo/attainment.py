"""Which requests met their SLA, as their clients saw it. Pure.

Everything is counted over all offered requests: a lost or rejected one misses its SLA. A stream meets its TTFT (ITL) SLA when
the client saw it so. An answer that came in one piece shows only its end: it meets both when it came within TTFT SLA +
(tokens - 1) x ITL SLA. ITL counts requests of two tokens and more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from global_planner.config import GroupConfig, PoolConfig
from global_planner.mocker.load_record import LoadRecord


def ttft_attained(record: LoadRecord, ttft_sla_ms: float, itl_sla_ms: float) -> bool:
    if record.outcome != "completed":
        return False
    if record.ttft_ms is None:
        return record.duration_ms <= ttft_sla_ms + (record.osl_tokens - 1) * itl_sla_ms
    return record.ttft_ms <= ttft_sla_ms


def itl_attained(record: LoadRecord, ttft_sla_ms: float, itl_sla_ms: float) -> bool:
    if record.outcome != "completed":
        return False
    if record.itl_ms is None:
        return record.duration_ms <= ttft_sla_ms + (record.osl_tokens - 1) * itl_sla_ms
    return record.itl_ms <= itl_sla_ms


def ttft_attainment(records: Iterable[LoadRecord], groups: Mapping[str, GroupConfig]) -> float | None:
    """The share of offered requests whose first token came in time; None: there was none."""
    met = [
        ttft_attained(record, groups[record.model].sla.ttft_ms, groups[record.model].sla.itl_ms)
        for record in records
        if record.model in groups
    ]
    return sum(met) / len(met) if met else None


def itl_attainment(records: Iterable[LoadRecord], groups: Mapping[str, GroupConfig]) -> float | None:
    """The share of offered requests of two tokens and more whose tokens came fast enough; None: there was none."""
    met = [
        itl_attained(record, groups[record.model].sla.ttft_ms, groups[record.model].sla.itl_ms)
        for record in records
        if record.model in groups and record.osl_tokens > 1
    ]
    return sum(met) / len(met) if met else None


def prompts_of(group: GroupConfig, pool: PoolConfig) -> tuple[float, float]:
    """Prompt lengths (above, up to) that come to `pool`: to the tightest limit of its role that holds them."""
    limits = sorted(other.isl_max_tokens or np.inf for other in group.pools if other.role == pool.role)
    mine = pool.isl_max_tokens or np.inf
    return max((limit for limit in limits if limit < mine), default=0.0), float(mine)
