"""Stages of a group go down together: whoever is lowered leaves its partner nothing that it could not pass on any more."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from global_planner.arbiter import ArbiterPolicy
from tests.arbiter.builders import EXAMPLES, Fleet, group, pool

STAGES = ("chat-prefill", "chat-decode", "code-prefill", "code-decode")
PARTNER = {name: name.replace("prefill", "x").replace("decode", "prefill").replace("x", "decode") for name in STAGES}

loads = st.lists(
    st.tuples(*([st.one_of(st.none(), st.integers(0, 24))] * 2), st.sampled_from((*STAGES, *[""] * 8))), min_size=3, max_size=10
)


@given(
    sizes=st.tuples(*([st.sampled_from((1, 1, 2, 4))] * 4)),
    carries=st.tuples(*([st.sampled_from((0.4, 0.7, 1.0, 1.3, 2.9))] * 4)),
    budget=st.sampled_from((12, 30, 200)),
    moments=loads,
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nobody_is_left_with_half_of_a_capacity(
    sizes: tuple[int, ...], carries: tuple[float, ...], budget: int, moments: list[tuple[int | None, int | None, str]]
) -> None:
    """Loads that change at once, GPUs that are short or not, a stage that is silent now and then: holds included."""
    rate = dict(zip(STAGES, carries, strict=True))
    fleet = Fleet(
        pools=[pool(name, name[5:], gpus=size, least=1) for name, size in zip(STAGES, sizes, strict=True)],  # type: ignore[arg-type]
        groups=[group("chat"), group("code")],
        budget={"h100": budget},
        policy=ArbiterPolicy(hold_s=20.0, move_horizon_s=300.0),
        per_replica=rate,
    )
    told = {"chat": 1.0, "code": 1.0}
    for chat, code, silent in moments:
        told |= {name: load / 2 for name, load in (("chat", chat), ("code", code)) if load is not None}
        before = dict(fleet.have)
        fleet.round(told, without=[silent])
        assert fleet.last is not None
        held = {grant.pool for grant in fleet.last.pools if grant.held}
        for name in STAGES:
            partner = PARTNER[name]
            if fleet.have[name] < before[name] and not {name, partner} & held and fleet.have[partner] > 1:
                passed = fleet.have[name] * rate[name]
                assert (fleet.have[partner] - 1) * rate[partner] < passed + 1e-9, (name, before, fleet.have, told)
