"""GPUs are taken from a running group only for replicas that find a place, where the cluster tells its nodes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from global_planner.arbiter import ArbiterPolicy, ArbiterState, arbitrate
from global_planner.arbiter.limits import limits_of
from global_planner.arbiter.placement import without_place
from global_planner.arbiter.plan import start_plan
from global_planner.arbiter.settle import view_of
from global_planner.conditions import conditions
from global_planner.rollout_state import RolloutState
from global_planner.types import Holding, NodeRoom, Replica, RoundInputs
from tests.arbiter.builders import AT_ONCE, EXAMPLES, decide, granted, group, inputs, line, pool, proposal, steps

CHAT, BIG = pool("chat-agg", least=1), pool("big-agg", gpus=8)


def nodes(**free: int) -> tuple[NodeRoom, ...]:
    return tuple(NodeRoom(node=name, gpu_type="h100", gpus=8, free_gpus=gpus) for name, gpus in free.items())


def on(spread: Mapping[str, int], *, name: str = "chat-agg", in_flight: Mapping[str, int] | None = None) -> Holding:
    """A pool of one-GPU replicas, so many on each node."""
    busy = in_flight or {}
    replicas = tuple(
        Replica(id=f"{name}-{node}{n}", state="ready", nodes=(node,), in_flight=busy.get(node, 1))
        for node, many in spread.items()
        for n in range(many)
    )
    return Holding(pool=name, at_s=0.0, spec=len(replicas), gpus_per_replica=1, replicas=replicas, cold_start_s=60.0)


def wanting(chat: Holding, big: Holding, room: tuple[NodeRoom, ...] | None) -> RoundInputs:
    """Big would gain far more from eight GPUs than chat loses with them."""
    told = inputs(
        [CHAT, BIG],
        [proposal("chat-agg", 20.0, 1.0), steps("big-agg", 100.0, (0.0, 0.5, 1.0))],
        budget={"h100": 20},
        have={"chat-agg": 12, "big-agg": 1},
    )
    return replace(told, holdings=(chat, big), nodes=room)


RUNNING = Holding(
    pool="big-agg", at_s=0.0, spec=1, gpus_per_replica=8, replicas=(Replica(id="big-0", state="ready", nodes=("c",)),)
)


def test_eight_gpus_on_two_nodes_are_no_place_for_a_replica_of_eight() -> None:
    apart = on({"a": 6, "b": 6})
    assert granted(decide(wanting(apart, RUNNING, None))) == {"chat-agg": 4, "big-agg": 2}, "where nobody tells, GPUs are GPUs"
    # All of chat's have the same work, so eight would go by their names: six from a, two from b.
    told = wanting(on({"a": 6, "b": 6}), RUNNING, nodes(a=0, b=0, c=0))
    kept = decide(told)
    assert granted(kept) == {"chat-agg": 12, "big-agg": 1}
    assert line(kept, "big-agg").binding == "no node has 8 free GPUs of h100"
    assert "no node has 8 free GPUs of h100" in line(kept, "big-agg").reason


def test_what_is_free_beside_those_who_go_first_makes_a_place() -> None:
    # Six idle replicas of chat on node a go first, and two GPUs are free beside them.
    told = wanting(on({"a": 6, "b": 6}, in_flight={"a": 0, "b": 5}), RUNNING, nodes(a=2, b=2, c=0))
    # 20 GPUs in the budget: 12 + 8 are in use, so eight of chat's must go for the second replica of big.
    assert granted(decide(told)) == {"chat-agg": 4, "big-agg": 2}
    # The cluster chooses, and nobody knows whom: then nothing can be promised.
    blind = replace(told, holdings=(replace(told.holdings[0], victims="unknown"), RUNNING))
    assert granted(decide(blind)) == {"chat-agg": 12, "big-agg": 1}


def test_a_replica_of_two_nodes_needs_them_at_once() -> None:
    two = replace(RUNNING, nodes_per_replica=2, replicas=(Replica(id="big-0", state="ready", nodes=("c", "d")),))
    idle = replace(on({"a": 4, "b": 4, "e": 4}), spec=12)
    assert granted(decide(wanting(idle, two, nodes(a=4, b=4, c=0, d=0, e=0))))["big-agg"] == 2
    alone = decide(wanting(idle, two, nodes(a=4, b=0, c=0, d=0, e=0)))
    # a has room for its half; eight victims by name leave four on a and four on b: two nodes.
    assert granted(alone)["big-agg"] == 2
    scattered = on({"a": 2, "b": 2, "c": 2, "d": 2, "e": 2, "f": 2}, in_flight={"a": 0, "b": 0, "c": 1, "d": 1, "e": 9, "f": 9})
    nowhere = decide(wanting(scattered, two, nodes(a=1, b=0, c=0, d=0, e=0, f=0)))
    assert granted(nowhere) == {"chat-agg": 12, "big-agg": 1}
    assert line(nowhere, "big-agg").binding == "no 2 nodes have 4 free GPUs of h100 each"


def test_the_partner_of_a_stage_without_a_place_stays_too() -> None:
    prefill, decode = pool("chat-prefill", "prefill", least=1), pool("chat-decode", "decode", gpus=8, least=1)
    told = inputs(
        [prefill, decode],
        [proposal("chat-prefill", 3.0, 1.0), proposal("chat-decode", 3.0, 1.0)],
        budget={"h100": 40},
    )
    assert granted(decide(told)) == {"chat-prefill": 3, "chat-decode": 3}
    tight = decide(replace(told, nodes=nodes(a=8, b=7, c=5)))
    assert granted(tight) == {"chat-prefill": 2, "chat-decode": 2}


def test_freed_gpus_that_others_took_are_told() -> None:
    told = wanting(on({"a": 6}), RUNNING, nodes(a=1, b=2, c=0))
    # 20 in the budget, 6 + 8 charged: six are free, of which the nodes have three.
    said = conditions(RolloutState(), told, decide(told), (), (), ())
    assert "3 of the 6 GPUs of h100 that the budget has free are used by others: only 3 are free on the nodes" in said
    silent = conditions(RolloutState(), replace(told, nodes=None), decide(told), (), (), ())
    assert not any("used by others" in text for text in silent)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    sizes=st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=3),
    loads=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    free=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    spread=st.sampled_from((1, 1, 2)),
)
def test_every_raise_finds_a_place(sizes: list[int], loads: list[int], free: list[int], spread: int) -> None:
    """Nobody gives way here, so what is raised must fit into what is free: against every way to set it there."""
    pools = [pool(f"m{n}-agg", gpus=size) for n, size in enumerate(sizes)]
    told = inputs(
        pools, [proposal(p.name, float(load), 1.0) for p, load in zip(pools, loads, strict=False)], budget={"h100": 99}
    )
    wide = {p.name: spread if p.gpus_per_replica >= spread else 1 for p in pools}
    told = replace(
        told,
        nodes=tuple(NodeRoom(node=f"n{n}", gpu_type="h100", gpus=8, free_gpus=gpus) for n, gpus in enumerate(free)),
        holdings=tuple(replace(h, nodes_per_replica=wide[h.pool]) for h in told.holdings),
    )
    counts = granted(decide(told))
    pieces = sorted(
        ((p.gpus_per_replica // wide[p.name], wide[p.name]) for p in pools for _ in range(counts[p.name])), reverse=True
    )
    assert _fits(pieces, free), (counts, free)
    # And nothing stays away that the same order of setting would have placed alone.
    for p, load in zip(pools, loads, strict=False):
        if counts[p.name] == 0 and load > 0 and all(n == 0 for n in counts.values()):
            assert not _fits([(p.gpus_per_replica // wide[p.name], wide[p.name])], free)


def _fits(pieces: list[tuple[int, int]], free: list[int]) -> bool:
    """Whether the replicas (GPUs on a node, nodes) can be set on the nodes in any way."""
    if not pieces:
        return True
    (each, spread), *rest = pieces
    places = [n for n, gpus in enumerate(free) if gpus >= each]
    for chosen in itertools.combinations(places, spread):
        if _fits(rest, [gpus - each * (n in chosen) for n, gpus in enumerate(free)]):
            return True
    return False


def test_deciding_again_ends() -> None:
    """As many pools that find no place as there are: the round is decided, and what it grants fits."""
    pools = [pool(f"m{n}-agg", gpus=8) for n in range(12)]
    told = inputs(
        pools, [proposal(p.name, 3.0, 1.0) for p in pools], budget={"h100": 500}, groups=[group(f"m{n}") for n in range(12)]
    )
    told = replace(told, nodes=nodes(a=8, b=8, c=7))
    allocation = decide(told)
    assert sum(granted(allocation).values()) == 2
    view = view_of(ArbiterState(), told, AT_ONCE)
    plan = start_plan(view, limits_of(told.budget, AT_ONCE, tuple(view.pools.values())))
    plan.counts = [[granted(allocation)[p.spec.name] for p in g.pools] for g in plan.groups]
    assert without_place(plan, told.nodes) == {}
    assert arbitrate(ArbiterState(), told, ArbiterPolicy())[1].pools
