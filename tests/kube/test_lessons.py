"""Failures of other planners, end to end on a real API server: what happened there, and what happens here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from global_planner.own_metrics import render
from global_planner.types import Custody, Override
from global_planner.unrouted import Unrouted
from tests.kube.conftest import Start
from tests.kube.manifests import ADAPTERS, DGDS, Shape, adapter, dgd
from tests.kube.play import Play
from tests.kube.server import ApiServer, call, patched

AT_REST = {"chat_prefill": 1, "chat_decode": 1, "code_prefill": 1, "code_decode": 1, "docs_prefill": 1, "docs_decode": 1}


def told(play: Play) -> str:
    return "\n".join(play.leader.rounds[-1].conditions)


# ---- 2: a replica that cannot be scheduled -----------------------------------------------------------------------------


def test_a_replica_that_finds_no_node_blocks_nobody_and_is_given_up(start: Start) -> None:
    play = start()
    play.operator.unschedulable.add(("chat-main", "decode"))
    play.want(**AT_REST | {"chat_decode": 3, "docs_prefill": 3})
    play.rounds(3)
    assert "cannot be placed: 0/3 nodes are available: 3 Insufficient gpu" in told(play)
    play.want(docs_prefill=0, code_decode=2)
    play.rounds(14)
    assert play.ordered()["docs-prefill"] == 1, "scaling down goes on meanwhile"
    assert play.ordered()["code-decode"] == 2, "and up"
    cancelled = [item for done in play.leader.rounds for item in done.steps if type(item).__name__ == "Cancel"]
    assert cancelled and "0/3 nodes are available" in cancelled[0].reason
    assert play.violations == []


# ---- 3: requests in flight ----------------------------------------------------------------------------------------------


def test_a_busy_replica_is_not_ended_and_the_idle_one_that_was_named_is(start: Start) -> None:
    play = start()
    play.want(**AT_REST | {"chat_decode": 3})
    play.until_quiet()
    state = play.leader.cluster.state("chat-decode")
    ids = sorted(item.id for item in state.replicas)
    idle = ids[0]  # the oldest: a ReplicaSet left alone would end the youngest
    play.leader.router.busy = {id_ for id_ in ids if id_ != idle}
    play.want(chat_decode=0)
    play.rounds(14)
    assert [name for _, name in play.operator.killed] == [idle], "only the drained one went"
    draining = [id_ for id_, state in play.leader.router.states.items() if state == "draining"]
    assert len(draining) == 1
    play.leader.router.busy = set(ids) - set(draining)
    play.until_quiet()
    assert [name for _, name in play.operator.killed] == [idle, *draining]
    assert play.alive()["chat-decode"] == 1 and play.violations == []


def test_where_the_last_ones_go_the_last_ones_are_drained(start: Start) -> None:
    play = start(workload="LeaderWorkerSet")
    play.want(**AT_REST | {"chat_decode": 3})
    play.until_quiet()
    last = max(item.id for item in play.leader.cluster.state("chat-decode").replicas)
    play.leader.router.busy = {last}
    play.want(chat_decode=1)
    play.rounds(10)
    assert play.operator.killed == [], "the one that the cluster would end has work, so nothing is ordered"
    assert play.leader.router.states[last] == "draining"
    play.leader.router.busy = set()
    play.until_quiet()
    assert [name for _, name in play.operator.killed] == [last]


# ---- 4: GPUs that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["v1alpha1", "v1beta1"])
def test_gpus_that_cannot_be_read_stop_growth_and_say_so(start: Start, server: ApiServer, shape: Shape) -> None:
    play = start(shape=shape)
    path = DGDS.format("v1beta1", play.namespace) + "/docs-main"
    spec = server.admin.get(path)["spec"]
    if shape == "v1alpha1":
        spec["services"]["VllmPrefillWorker"]["resources"] = {"limits": {"gpu": "half"}}
    else:
        spec["components"][1]["podTemplate"]["spec"]["containers"][0].pop("resources")
    patched(server.admin, path, {"spec": spec})
    play.settle()
    play.want(**AT_REST | {"chat_prefill": 3})
    play.rounds(2)
    assert play.ordered()["chat-prefill"] == 1, "what docs holds was never known here, so nothing grows"
    assert ("the limit gpu: 'half' is not a count" if shape == "v1alpha1" else "has no limit of GPUs") in told(play)
    assert "unknown is not zero" in told(play)
    metrics = render(play.leader.rounds[-1], now_s=play.clock.now_s, leading=True, code="python")
    (info,) = [line for line in metrics.splitlines() if line.startswith("global_planner_pool_unknown_info{")]
    assert 'pool="docs-prefill"' in info and ("not a count" in info or "has no limit of GPUs" in info) and info.endswith(" 1.0")


def test_gpus_that_become_unreadable_stay_charged_as_they_were(start: Start, server: ApiServer) -> None:
    play = start()
    play.want(**AT_REST)
    play.rounds(2)
    path = DGDS.format("v1beta1", play.namespace) + "/docs-main"
    spec = server.admin.get(path)["spec"]
    spec["components"][1]["podTemplate"]["spec"]["containers"][0].pop("resources")
    patched(server.admin, path, {"spec": spec})
    play.settle()
    play.want(chat_prefill=20)
    play.rounds(6)
    assert play.leader.rounds[-1].charged_gpus == {"h100": 16}, "docs-prefill counts on"
    assert play.ordered()["chat-prefill"] == 9
    assert "docs-prefill cannot be read and is charged what was last known" in told(play)


def test_gpus_of_resource_claims_come_from_status(start: Start, server: ApiServer) -> None:
    play = start()
    path = DGDS.format("v1beta1", play.namespace) + "/docs-main"
    spec = server.admin.get(path)["spec"]
    spec["components"][1]["podTemplate"] = {"spec": {"resourceClaims": [{"name": "gpus"}], "containers": [{"name": "main"}]}}
    patched(server.admin, path, {"spec": spec})
    play.settle()
    assert "by resource claims" in (play.leader.cluster.state("docs-prefill").unknown or "")
    spec["components"][1]["podTemplate"]["metadata"] = {"gpus": 3}
    patched(server.admin, path, {"spec": spec})
    play.pass_time()
    assert play.leader.cluster.state("docs-prefill").gpus_per_replica == 3


# ---- 5: nothing to see, and nobody told -----------------------------------------------------------------------------------


def test_a_component_that_is_not_there_is_unknown_and_is_told_with_what_there_is(start: Start, server: ApiServer) -> None:
    play = start()
    path = DGDS.format("v1beta1", play.namespace) + "/docs-main"
    spec = server.admin.get(path)["spec"]
    spec["components"][1] |= {"name": "pre", "type": "worker"}
    patched(server.admin, path, {"spec": spec})
    play.settle()
    play.want(**AT_REST)
    play.round()
    assert "docs-prefill is held: DGD docs-main" in told(play)
    assert "no prefill component that could be 'prefill' (has: frontend (no worker), pre (agg), decode (decode))" in told(play)
    call(server.admin, "DELETE", path, None)
    play.settle()
    play.round()
    assert f"docs-decode is held: DGD docs-main in {play.namespace} does not exist" in told(play)


# ---- 9: people ----------------------------------------------------------------------------------------------------------


def test_what_people_set_is_seen_in_the_next_round_and_nothing_else_is_believed(start: Start) -> None:
    play = start()
    play.want(**AT_REST | {"chat_decode": 2})
    play.until_quiet()
    play.over_by_people = 99
    play.scale("chat-decode", 6)
    done = play.round()
    holding = next(item for item in done.inputs.holdings if item.pool == "chat-decode")
    assert holding.adapter_spec == 6
    play.until_quiet()
    assert play.ordered()["chat-decode"] == 3, "as many as carry 1.1 times what two do"


def test_kubectl_scale_under_an_override_is_respected_until_the_override_ends(start: Start) -> None:
    play = start()
    play.want(**AT_REST)
    ends_s = play.clock.now_s + 300.0
    play.orders.override(Override(pool="chat-prefill", kind="pin", replicas=3, expires_at_s=ends_s, by="ann"))
    play.settle_orders()
    play.until_quiet()
    assert play.ordered()["chat-prefill"] == 3
    play.scale("chat-prefill", 2)
    play.rounds(4)
    assert play.ordered()["chat-prefill"] == 2, "a person set it"
    assert "2 replicas were set by hand while an override was in force" in told(play)
    play.clock.now_s = ends_s + 1.0
    play.want(chat_prefill=0)
    play.rounds(10)
    assert play.ordered()["chat-prefill"] == 1


# ---- foreign writers ------------------------------------------------------------------------------------------------------


def test_a_pool_that_another_planner_writes_is_observed_until_it_is_adopted(start: Start) -> None:
    play = start()
    play.scale("chat-decode", 2, manager="dynamo-planner")
    play.want(**AT_REST | {"chat_decode": 3, "chat_prefill": 2})
    play.rounds(3)
    assert play.ordered()["chat-decode"] == 2, "it is only watched"
    assert play.ordered()["chat-prefill"] == 2, "its neighbour is moved"
    assert "chat-decode is only observed: dynamo-planner sets its replicas too" in told(play)

    play.orders.take(Custody(pool="chat-decode", whose="ours", at_s=play.clock.now_s, by="ann"))
    play.settle_orders()
    play.until_quiet()
    assert play.ordered()["chat-decode"] == 3

    play.orders.take(Custody(pool="chat-decode", whose="theirs", at_s=play.clock.now_s, by="ann"))
    play.settle_orders()
    play.want(chat_decode=0)
    play.rounds(8)
    assert play.ordered()["chat-decode"] == 3 and "it was released by ann" in told(play)


def test_who_undoes_our_orders_again_and_again_is_a_controller_by_any_name(start: Start, server: ApiServer) -> None:
    """This API server notes no writer of a scale, as with an HPA on older ones."""
    play = start()
    play.want(**AT_REST | {"docs_decode": 2})
    name = "docs-main-decode"
    for _ in range(12):
        play.round()
        if play.ordered()["docs-decode"] == 2:
            path = f"{ADAPTERS.format(play.namespace)}/{name}/scale"
            call(server.admin, "PATCH", path, {"spec": {"replicas": 1}}, manager="hpa")
            play.settle()
    assert play.ordered()["docs-decode"] == 1, "the fight has ended"
    assert "docs-decode is only observed: somebody who undoes our orders sets its replicas too" in told(play)


# ---- a rolling update -----------------------------------------------------------------------------------------------------


def test_during_a_rolling_update_all_generations_count_and_nobody_is_shrunk_for_the_surge(start: Start) -> None:
    play = start(budget=10)
    play.want(**AT_REST | {"chat_decode": 2})
    play.until_quiet()
    before = play.ordered()
    play.budget = 14  # the surge is the update's, and what it ends lingers
    play.operator.roll("chat-main", "decode", "two")
    seen = set()
    for _ in range(14):
        play.want(code_decode=3)
        done = play.round()
        holding = next(item for item in done.inputs.holdings if item.pool == "chat-decode")
        if holding.updating:
            seen.add(len([item for item in holding.replicas if item.state != "terminating"]))
            assert done.charged_gpus["h100"] >= play.gpus_before(done)
            assert "chat-decode is left alone while a rolling update is under way" in told(play)
            assert play.ordered() == before, "nobody gives way, and nobody grows"
    assert 3 in seen, "old and new together"
    assert not holding.updating
    generations = {item.generation for item in play.leader.cluster.state("chat-decode").replicas}
    assert generations == {"two"} and play.violations == []


# ---- what may not be seen -------------------------------------------------------------------------------------------------


def test_without_the_right_to_list_pods_replicas_come_from_status_and_gone_ones_stay_charged(start: Start) -> None:
    play = start(without="pods")
    play.want(**AT_REST | {"chat_prefill": 2})
    play.until_quiet()
    holding = next(item for item in play.leader.rounds[-1].inputs.holdings if item.pool == "chat-prefill")
    assert holding.terminating_hidden and holding.victims == "unknown"
    assert [item.state for item in holding.replicas] == ["ready", "ready"]
    assert "cannot promise that the drained one goes" in told(play)


def test_without_the_right_to_name_a_victim_it_is_said_that_nothing_can_be_promised(start: Start) -> None:
    play = start(without="patch pods")
    play.want(**AT_REST | {"chat_decode": 3})
    play.until_quiet()
    assert "cannot promise" not in told(play)
    play.want(chat_decode=1)
    play.rounds(12)
    assert play.alive()["chat-decode"] == 2, "it is scaled down all the same"
    assert "chat-decode: its workload chooses itself which replica ends" in told(play)


def test_where_no_router_of_ours_is_in_front_it_is_said_what_that_means(start: Start) -> None:
    play = start()
    play.want(**AT_REST)
    play.round()
    assert "no router of ours" not in told(play)
    play.leader.router = Unrouted()  # as `drained_by: pods` has it
    play.round()
    assert "no router of ours is in front, so nobody sees requests in flight" in told(play)


def test_a_missing_right_to_write_is_told_by_verb_and_resource(start: Start) -> None:
    play = start(adapters=False, may_patch_dgds=False)
    play.want(**AT_REST | {"chat_prefill": 2})
    play.round()
    assert "a role must give us the verb 'patch' on dynamographdeployments" in told(play)
    assert play.namespace in told(play)


def test_an_order_of_unknown_outcome_that_nobody_wants_any_more_is_settled(start: Start) -> None:
    play = start(adapters=False)
    play.want(**AT_REST | {"chat_prefill": 2})
    state = play.leader.cluster.state("chat-prefill")
    assert state.version is not None
    from global_planner.types import Shrink

    step = Shrink(pool="chat-prefill", before=1, after=1, victims=(), version=state.version, reason="settles")
    assert asyncio.run(play.leader.lease.stand()).kind == "leader"
    asyncio.run(play.leader.cluster.apply(step))
    play.settle()
    assert play.leader.cluster.state("chat-prefill").version != state.version, "the version has moved on"
    assert play.ordered()["chat-prefill"] == 1


# ---- shapes that exist ----------------------------------------------------------------------------------------------------


def test_multinode_replicas_count_all_their_nodes(server: ApiServer, start: Start) -> None:
    play = start()
    body = dgd("big-main", "v1beta1", {"agg": (1, 8)}, nodes=2)
    server.create(DGDS.format("v1beta1", play.namespace), body)
    server.create(ADAPTERS.format(play.namespace), adapter("big-main", "agg", 1), manager="manager")
    from pool_planner.connectors.component_state import Target

    target = Target(namespace=play.namespace, dgd="big-main", role="agg", component="agg")

    def gpus() -> int | None:
        return play.leader.deployments.state(target).gpus_per_replica

    play.settle()
    assert gpus() == 16


def test_each_step_is_an_event_on_its_dgd(start: Start, server: ApiServer) -> None:
    from global_planner.kubernetes_events import EventTeller

    play = start()
    teller = EventTeller(play.leader.api, play.leader.deployments.dgd, play.leader.pools, unix_now=play.clock.now)
    play.want(**AT_REST | {"chat_prefill": 2})
    done = play.round()
    for _ in range(20):
        teller.tell(done)
    teller.close(10.0)
    events: list[dict[str, Any]] = server.admin.get(f"/api/v1/namespaces/{play.namespace}/events")["items"]
    assert {item["involvedObject"]["name"] for item in events} == {"chat-main"}
    assert events[0]["reason"] == "ScaledUp" and "chat-prefill: 1 -> 2 replicas (round 1)" in events[0]["message"]
    assert len(events) == 6 and teller.left_out == 14 and teller.failed is None, "rate-limited"

    # Whoever may not write them is told why, once.
    said: list[str] = []
    refused = EventTeller(
        server.api("person"), play.leader.deployments.dgd, play.leader.pools, unix_now=play.clock.now, log=said.append
    )
    for _ in range(4):
        refused.tell(done)
    refused.close(10.0)
    assert refused.left_out == 4 and len(said) == 1 and "the verb 'create' on events" in said[0], said
