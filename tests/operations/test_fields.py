"""Every field that decides anything stands in the topology, and changing it there changes what is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from global_planner import memory
from global_planner.arbiter.state import ArbiterPolicy
from global_planner.compile import pool_specs
from global_planner.config import Topology
from global_planner.policies import policies_of
from global_planner.rollout_state import RolloutPolicy
from global_planner.round import RoundConfig
from global_planner.system_clock import start_clock
from global_planner.types import Budget, Cancel, Drain, Holding, Round
from tests.operations.scene import Change, Loads, allocations, last, topology
from tests.rollout.play import Play, grant_in_order
from tests.rollout.world import World, specs
from tests.topology.refusals import both, put

# ---- the arbiter's fields: two deployments that differ in one line, the same traffic, what is granted in the end ------------

HEAVY_CODE = put("groups.1.weight", 3.0)
BOTH_WANT_6: Sequence[Loads] = [{"chat": 6.0, "code": 6.0}]
CODE_RISES: Sequence[Loads] = [{"chat": 5.0, "code": 3.0}] * 3 + [{"chat": 5.0, "code": 7.0}] * 4
CHAT_FALLS: Sequence[Loads] = [{"chat": 5.0, "code": 1.0}] + [{"chat": 1.0, "code": 1.0}] * 3
CHAT_BORROWS: Sequence[Loads] = (
    [{"chat": 7.0, "code": 3.0}] * 3 + [{"chat": 4.5, "code": 4.5}] * 2 + [{"chat": 5.0, "code": 5.0}]
)
IDLE: Sequence[Loads] = [{"chat": 0.0, "code": 0.0}]
NINE_IN_BERLIN = datetime.fromisoformat("2026-07-01T09:30:00+02:00").timestamp()


def schedule(**more: Any) -> dict[str, Any]:
    return {
        "name": "fair",
        "start": "09:00",
        "duration_s": 3600,
        "set": {"min_replicas": 4},
        "match": {"group": "chat"},
        **more,
    }


def selector(match: dict[str, Any], **values: Any) -> Change:
    return put("selectors", [{"name": "rule", "match": match, "set": values}])


@dataclass(frozen=True, kw_only=True)
class Row:
    """What chat and code are granted in the end: as things are, and with `change`. `given`: in both."""

    field: str
    change: Change
    rounds: Sequence[Loads]
    usual: tuple[int, int]
    changed: tuple[int, int]
    given: Change = lambda raw: None
    unix_at_zero_s: float = 0.0


ROWS: dict[str, Row] = {
    "what is best": Row(
        field="objective", change=put("arbiter.objective", "max_min"), rounds=BOTH_WANT_6, given=HEAVY_CODE,
        usual=(2, 6), changed=(4, 4),
    ),
    "nothing remembered": Row(
        field="stability", change=put("arbiter.stability", False), rounds=CHAT_FALLS, usual=(5, 1), changed=(1, 1)
    ),
    "no hold": Row(field="hold_s", change=put("arbiter.hold_s", 0.0), rounds=CHAT_FALLS, usual=(5, 1), changed=(2, 1)),
    "as long as a start takes, a minute here": Row(
        field="hold_least_s", change=put("arbiter.hold_s", None), given=put("arbiter.hold_s", 600.0),
        rounds=[{"chat": 5.0, "code": 1.0}] + [{"chat": 1.0, "code": 1.0}] * 8, usual=(5, 1), changed=(2, 1),
    ),
    "a horizon too short for any move": Row(
        field="move_horizon_s", change=put("arbiter.move_horizon_s", 5.0), rounds=CODE_RISES, given=HEAVY_CODE,
        usual=(1, 7), changed=(5, 3),
    ),
    "starts that cost more than a move gains": Row(
        field="cold_start_s", change=put("cluster.cold_start_s", 900.0), rounds=CODE_RISES, given=HEAVY_CODE,
        usual=(1, 7), changed=(5, 3),
    ),
    "caches that cost more than a move gains": Row(
        field="cache_loss_s", change=put("arbiter.cache_loss_s", 15000.0), rounds=CODE_RISES, given=HEAVY_CODE,
        usual=(1, 7), changed=(5, 3),
    ),
    "no moves": Row(
        field="max_moves_per_hour", change=put("arbiter.max_moves_per_hour", 0), rounds=CODE_RISES, given=HEAVY_CODE,
        usual=(1, 7), changed=(5, 3),
    ),
    "debts forgotten at once": Row(
        field="debt_half_life_s", change=put("arbiter.debt_half_life_s", 0.001), rounds=CHAT_BORROWS,
        given=put("arbiter.stability", False), usual=(3, 5), changed=(5, 3),
    ),
    "GPUs twice as dear under a limit on cost": Row(
        field="prices", change=put("budget.gpus.h100.price_per_hour", 4.0), rounds=BOTH_WANT_6,
        given=both(HEAVY_CODE, put("budget.limits", [{"name": "spend", "max_cost_per_hour": 16}])),
        usual=(2, 6), changed=(1, 3),
    ),
    "a quota of the namespace": Row(
        field="limits", change=put("budget.limits", [{"name": "team", "namespace": "team-*", "max_gpus": 3}]),
        rounds=BOTH_WANT_6, given=both(HEAVY_CODE, put("groups.1.namespace", "team-a")), usual=(2, 6), changed=(5, 3),
    ),
    "a minimum by role": Row(
        field="selectors", change=selector({"role": "agg"}, min_replicas=3), rounds=IDLE, usual=(1, 1), changed=(3, 3)
    ),
    "a maximum by name": Row(
        field="selectors", change=selector({"pool": "co*"}, max_replicas=2), rounds=BOTH_WANT_6, given=HEAVY_CODE,
        usual=(2, 6), changed=(6, 2),
    ),
    "a guarantee by group": Row(
        field="selectors", change=selector({"group": "chat"}, guarantee_replicas=5), rounds=BOTH_WANT_6, given=HEAVY_CODE,
        usual=(2, 6), changed=(5, 3),
    ),
    "a priority by model": Row(
        field="selectors", change=selector({"model": "demo/chat"}, priority=1), rounds=BOTH_WANT_6, given=HEAVY_CODE,
        usual=(2, 6), changed=(6, 2),
    ),
    "a weight by namespace": Row(
        field="selectors", change=selector({"namespace": "ours"}, weight=9.0), rounds=BOTH_WANT_6,
        given=both(HEAVY_CODE, put("groups.0.namespace", "ours")), usual=(2, 6), changed=(6, 2),
    ),
    "a floor while an event lasts": Row(
        field="schedules", change=put("schedules", [schedule(timezone="Europe/Berlin")]), rounds=IDLE,
        usual=(1, 1), changed=(4, 1), unix_at_zero_s=NINE_IN_BERLIN,
    ),
    "the same hour of another zone": Row(
        field="schedules", change=put("schedules", [schedule(timezone="America/New_York")]), rounds=IDLE,
        given=put("schedules", [schedule(timezone="Europe/Berlin")]), usual=(4, 1), changed=(1, 1),
        unix_at_zero_s=NINE_IN_BERLIN,
    ),
    "an event on other days": Row(
        field="schedules", change=put("schedules", [schedule(timezone="Europe/Berlin", days=["sat", "sun"])]), rounds=IDLE,
        given=put("schedules", [schedule(timezone="Europe/Berlin", days=["wed"])]), usual=(4, 1), changed=(1, 1),
        unix_at_zero_s=NINE_IN_BERLIN,
    ),
    "an event on another date": Row(
        field="schedules", change=put("schedules", [schedule(timezone="Europe/Berlin", date="2026-07-02")]), rounds=IDLE,
        given=put("schedules", [schedule(timezone="Europe/Berlin", date="2026-07-01")]), usual=(4, 1), changed=(1, 1),
        unix_at_zero_s=NINE_IN_BERLIN,
    ),
    "an event that is prepared longer": Row(
        field="schedules", change=put("schedules", [schedule(timezone="Europe/Berlin", lead_s=1800)]), rounds=IDLE,
        given=put("schedules", [schedule(timezone="Europe/Berlin")]), usual=(1, 1), changed=(4, 1),
        unix_at_zero_s=NINE_IN_BERLIN - 1800 - 60,  # 08:59
    ),
    "twice the load while an event lasts": Row(
        field="schedules", change=put("schedules", [schedule(timezone="Europe/Berlin", set={"load_factor": 2.0})]),
        rounds=[{"chat": 2.0, "code": 1.0}], usual=(2, 1), changed=(4, 1), unix_at_zero_s=NINE_IN_BERLIN,
    ),
    "a fleet that is kept": Row(
        field="surplus_pools", change=put("budget.gpus.h100.surplus_pools", ["code"]), rounds=IDLE,
        given=both(put("budget.gpus.h100.min_total", 6), put("budget.gpus.h100.surplus_pools", ["chat"])),
        usual=(5, 1), changed=(1, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_line_of_the_topology_decides(name: str) -> None:
    row = ROWS[name]
    usual = last(row.given, rounds=row.rounds, unix_at_zero_s=row.unix_at_zero_s)
    changed = last(row.given, row.change, rounds=row.rounds, unix_at_zero_s=row.unix_at_zero_s)
    assert (usual["chat"], usual["code"]) == row.usual
    assert (changed["chat"], changed["code"]) == row.changed


def test_the_limit_that_binds_is_named() -> None:
    quota = put("budget.limits", [{"name": "team", "namespace": "demo", "max_gpus": 5}])
    allocation = allocations(topology(HEAVY_CODE, quota), BOTH_WANT_6)[-1]
    assert {grant.binding for grant in allocation.pools} == {"limit team"}


def test_a_silent_pool_is_trusted_for_so_long() -> None:
    silent = [{"chat": 3.0, "code": 1.0}] * 2 + [{"code": 1.0}] * 6
    loads = []
    for trust_s in (900.0, 20.0):
        allocation = allocations(topology(put("arbiter.trust_s", trust_s)), silent)[-1]
        loads.append({grant.group: grant.load_rps for grant in allocation.groups}["chat"])
    assert loads == [3.0, 0.0]


def test_schedules_follow_the_calendar_that_the_topology_starts(tmp_path: Path) -> None:
    whole = topology(put("schedules", [schedule(timezone="Europe/Berlin")]))
    for start, granted in (("2026-07-01T09:30:00+02:00", 4), ("2026-07-01T11:30:00+02:00", 1)):
        folder = tmp_path / start
        folder.mkdir()
        clock = start_clock(folder, speed=20.0, wall_s=1.7e9, calendar_start=start)
        found = allocations(whole, IDLE, unix_at_zero_s=clock.unix_at_zero_s)[-1]
        assert {grant.pool: grant.granted for grant in found.pools}["chat"] == granted


# ---- the rollout's fields, and those of single pools: whole rounds in a world ----------------------------------------


@pytest.fixture
def dumb_arbiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted is granted at once: what then happens is the rollout's."""
    monkeypatch.setattr(memory, "arbitrate", grant_in_order)


dumb = pytest.mark.usefixtures("dumb_arbiter")


def played(*changes: Change) -> Play:
    """A planner with the rollout policy, start limits and modes of a topology, in the world of three groups."""
    whole = topology(*changes)
    compiled = policies_of(whole, unix_at_zero_s=0.0)
    pattern = pool_specs(whole)[0]
    pools = tuple(replace(spec, start_limit_s=pattern.start_limit_s, mode=pattern.mode) for spec in specs())
    play = Play(World(specs=pools, budget=Budget(max_gpus={"h100": 14})))
    play.config = replace(play.config, pools=pools, policies=replace(play.config.policies, rollout=compiled.rollout))
    play.want(chat_prefill=1, chat_decode=1, code_prefill=1, code_decode=0, docs_agg=0)
    return play


def rounds_of(play: Play, count: int, **wanted: int) -> list[Round]:
    done = []
    for _ in range(count):
        now = {pool.replace("-", "_"): report.wanted for pool, report in play.world.reports_now.items()}  # type: ignore[union-attr]
        play.want(**{**now, **wanted})
        found = play.round()
        assert found is not None
        done.append(found)
    return done


def holding_of(done: Round, pool: str) -> Holding:
    return next(item for item in done.inputs.holdings if item.pool == pool)


def backoffs(*changes: Change) -> list[float]:
    play = played(put("arbiter.start_limit_s", 40.0), *changes)
    play.world.broken_starts = True
    done = rounds_of(play, 60, docs_agg=1)
    return [s.backoff_until_s - item.inputs.at_s for item in done for s in item.steps if isinstance(s, Cancel)]


@dumb
def test_a_failed_start_backs_off_by_the_cold_start_or_as_said_up_to_the_most() -> None:
    assert backoffs()[:4] == [30.0, 60.0, 120.0, 240.0]
    assert backoffs(put("cluster.cold_start_s", 5.0))[:3] == [10.0, 20.0, 40.0], "a round at least"
    assert backoffs(put("arbiter.backoff_s", 50.0))[:2] == [50.0, 100.0]
    assert backoffs(put("arbiter.backoff_max_s", 45.0))[:3] == [30.0, 45.0, 45.0]


@dumb
@pytest.mark.parametrize(
    ("change", "limit_s"),
    [(put("arbiter.start_limit_s", 80.0), 80.0), (put("groups.0.pools.0.start_limit_s", 130.0), 130.0)],
)
def test_a_start_is_given_so_long(change: Change, limit_s: float) -> None:
    play = played(change)
    play.world.broken_starts = True
    done = rounds_of(play, 20, docs_agg=1)
    cancelled = next(item for item in done if any(isinstance(step, Cancel) for step in item.steps))
    ordered_s = next(item.inputs.at_s for item in done if item.steps)
    assert limit_s < cancelled.inputs.at_s - ordered_s <= limit_s + 10.0


@dumb
@pytest.mark.parametrize("deadline_s", [45.0, 400.0])
def test_a_drain_is_given_so_long(deadline_s: float) -> None:
    play = played(put("arbiter.drain_deadline_s", deadline_s))
    rounds_of(play, 5, chat_prefill=2)
    play.until_quiet()
    drains = [(s, item) for item in rounds_of(play, 20, chat_prefill=1) for s in item.steps if isinstance(s, Drain)]
    assert drains[0][0].deadline_s - drains[0][1].inputs.at_s == deadline_s


@dumb
@pytest.mark.parametrize("termination_s", [20.0, 70.0])
def test_replicas_that_end_unseen_stay_charged_for_the_clusters_grace_and_a_round(termination_s: float) -> None:
    play = played(put("cluster.termination_s", termination_s))

    def hidden(holding: Holding) -> Holding:
        living = tuple(replica for replica in holding.replicas if replica.state != "terminating")
        return replace(holding, replicas=living, terminating_hidden=True)

    play.world.seen_as = hidden
    rounds_of(play, 6, chat_prefill=2)
    play.until_quiet()
    lingered = [holding_of(item, "chat-prefill").lingering for item in rounds_of(play, 40, chat_prefill=1)]
    assert sum(lingered) == (termination_s + 10.0) / 10.0


@dumb
@pytest.mark.parametrize(
    ("whole", "pool", "acts"),
    [("act", "act", True), ("observe", "act", False), ("approve", "act", False), ("act", "observe", False)],
)
def test_a_pool_acts_only_where_its_own_mode_and_that_of_the_whole_let_it(whole: str, pool: str, acts: bool) -> None:
    play = played(put("arbiter.mode", whole), put("groups.0.pools.0.mode", pool))
    done = rounds_of(play, 3, docs_agg=1)
    assert done[0].steps
    assert any(item.outcomes for item in done) == acts
    assert play.world.pools["docs-agg"].ordered == int(acts)


def test_the_more_careful_of_two_modes_counts() -> None:
    modes = {"act", "approve", "observe"}
    found = {
        (whole, pool): pool_specs(topology(put("arbiter.mode", whole), put("groups.0.pools.0.mode", pool)))[0].mode
        for whole in modes
        for pool in modes
    }
    assert {pair for pair, mode in found.items() if mode == "act"} == {("act", "act")}
    assert {pair for pair, mode in found.items() if mode == "observe"} == {pair for pair in found if "observe" in pair}


# ---- nothing is forgotten ----------------------------------------------------------------------------------------------------

TESTED_BELOW_THE_TABLE = {"trust_s": put("arbiter.trust_s", 1.0)}
ROLLOUT: dict[str, Change] = {
    "drain_deadline_s": put("arbiter.drain_deadline_s", 7.0),
    "backoff_base_s": put("arbiter.backoff_s", 7.0),
    "backoff_max_s": put("arbiter.backoff_max_s", 77.0),
    "termination_grace_s": put("cluster.termination_s", 77.0),
}


def test_every_field_of_a_policy_is_set_by_the_topology_and_tested_here() -> None:
    arbiter = {row.field for row in ROWS.values()} | set(TESTED_BELOW_THE_TABLE) | {"unix_at_zero_s"}
    assert arbiter == {field.name for field in fields(ArbiterPolicy)}
    assert set(ROLLOUT) == {field.name for field in fields(RolloutPolicy)}
    compiled: Callable[[Topology], RolloutPolicy] = lambda whole: policies_of(whole, unix_at_zero_s=0.0).rollout  # noqa: E731
    for name, change in ROLLOUT.items():
        assert getattr(compiled(topology()), name) != getattr(compiled(topology(change)), name)


def test_the_rounds_are_configured_with_them() -> None:
    whole = topology(put("schedules", [schedule()]), selector({"role": "agg"}, min_replicas=2))
    assert RoundConfig.of(whole, unix_at_zero_s=12.0).policies == policies_of(whole, unix_at_zero_s=12.0)
    assert RoundConfig.of(whole, unix_at_zero_s=12.0).policies.arbiter.unix_at_zero_s == 12.0


def test_the_result_says_which_line_decided() -> None:
    whole = topology(
        put(
            "selectors",
            [
                {"name": "gold", "match": {"group": "chat"}, "set": {"priority": 2, "weight": 3.0, "guarantee_replicas": 2}},
                {"name": "small", "match": {"pool": "code"}, "set": {"max_replicas": 2}},
                {"name": "all", "match": {}, "set": {"guarantee_replicas": 1}},
            ],
        ),
        put("schedules", [schedule(timezone="Europe/Berlin", set={"load_factor": 2.0})]),
    )
    allocation = allocations(whole, BOTH_WANT_6, unix_at_zero_s=NINE_IN_BERLIN)[-1]
    assert {grant.pool: grant.rules for grant in allocation.pools} == {
        "chat": ("guarantee 2 by selector gold", "load x 2 by schedule fair"),
        "code": ("maximum 2 by selector small", "guarantee 1 by selector all"),
    }
    assert {grant.group: grant.rules for grant in allocation.groups} == {
        "chat": ("priority 2 by selector gold", "weight 3 by selector gold"),
        "code": (),
    }
