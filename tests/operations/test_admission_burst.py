"""How much of the admitted rate may come at once: from the topology to the router's door."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from global_planner import memory
from global_planner.round import RoundConfig
from global_planner.topology_file import parse_topology
from global_planner.types import Budget
from router.admission import Admission, Ticket
from router.limits import RateLimit
from tests.rollout.play import Play, grant_in_order
from tests.rollout.world import World, specs
from tests.topology.refusals import EXAMPLE, changed, put


def admitted_at_once(burst_s: float) -> int:
    """Requests that a router takes in one moment, under the plan of one round with that setting."""
    raw = changed(put("arbiter.admission_burst_s", burst_s))
    config = RoundConfig.of(parse_topology(json.dumps(raw), source="t", folder=EXAMPLE.parent), unix_at_zero_s=0.0)
    play = Play(World(specs=specs(), budget=Budget(max_gpus={"h100": 14})))
    play.config = replace(play.config, admission_burst_s=config.admission_burst_s)
    play.want(chat_prefill=1, chat_decode=1)
    play.round()
    plan = {group.model: group for group in play.world.admitted}["demo/chat"]
    assert plan.admitted_rps == 5.0, "what the dumb arbiter of this world admits"
    door = Admission({"demo/chat": (0, RateLimit())}, room=1000, starting_retry_after_s=7.0, now=0.0)
    door.put_plan(1, {"demo/chat": RateLimit(rate_rps=plan.admitted_rps, burst=plan.burst)}, valid_s=60.0, now=0.0)
    requests = [Ticket(model="demo/chat", priority=0, tokens=1.0, deadline_s=30.0) for _ in range(300)]
    return sum(door.offer(request, 0.0, usable=True) == "admitted" for request in requests)


@pytest.mark.parametrize(("burst_s", "requests"), [(0.0, 1), (1.0, 5), (20.0, 100)])
def test_a_burst_of_so_many_seconds_worth_goes_through_at_once(
    burst_s: float, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "arbitrate", grant_in_order)
    assert admitted_at_once(burst_s) == requests


def test_twenty_seconds_worth_unless_the_topology_says_otherwise() -> None:
    plain = parse_topology(json.dumps(changed(put("name", "plain"))), source="t", folder=EXAMPLE.parent)
    assert RoundConfig.of(plain, unix_at_zero_s=0.0).admission_burst_s == 20.0
