"""Stages of a group go down together: whoever is lowered leaves its partner nothing that it could not pass on any more."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from global_planner.arbiter import ArbiterPolicy
from tests.arbiter.builders import EXAMPLES, Fleet, group, pool
from tests.dice import Dice, thrown

STAGES = ("chat-prefill", "chat-decode", "code-prefill", "code-decode")
PARTNER = {name: name.replace("prefill", "x").replace("decode", "prefill").replace("x", "decode") for name in STAGES}

Moment = tuple[int | None, int | None, str]
"""New loads of chat and code, in halves of a request/s (None: as before), and the stage that is silent ("": none is)."""


def load(dice: Dice) -> int | None:
    return dice.number(0, 24) if dice.yes() else None


def day(dice: Dice) -> tuple[tuple[int, ...], tuple[float, ...], int, list[Moment]]:
    """Sizes of replicas, what they carry, the budget, and what happens."""
    sizes = tuple(dice.pick((1, 1, 2, 4)) for _ in STAGES)
    carries = tuple(dice.pick((0.4, 0.7, 1.0, 1.3, 2.9)) for _ in STAGES)
    budget = dice.pick((12, 30, 200))
    return sizes, carries, budget, [(load(dice), load(dice), dice.pick(("",) * 8 + STAGES)) for _ in range(dice.number(3, 10))]


@given(thrown(72, day))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nobody_is_left_with_half_of_a_capacity(story: tuple[tuple[int, ...], tuple[float, ...], int, list[Moment]]) -> None:
    """Loads that change at once, GPUs that are short or not, a stage that is silent now and then: holds included."""
    sizes, carries, budget, moments = story
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
        told |= {name: new / 2 for name, new in (("chat", chat), ("code", code)) if new is not None}
        before = dict(fleet.have)
        fleet.round(told, without=[silent])
        assert fleet.last is not None
        held = {grant.pool for grant in fleet.last.pools if grant.held}
        for name in STAGES:
            partner = PARTNER[name]
            if fleet.have[name] < before[name] and not {name, partner} & held and fleet.have[partner] > 1:
                passed = fleet.have[name] * rate[name]
                assert (fleet.have[partner] - 1) * rate[partner] < passed + 1e-9, (name, before, fleet.have, told)
