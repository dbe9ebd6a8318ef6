"""What a topology means to each part: nothing of it is lost, nothing is added, and every part can read its share."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from global_planner import compile as compiled
from global_planner.config import Topology
from global_planner.replay.engine_spec import raw_spec, spec_from_raw
from global_planner.topology_file import load_profiles, parse_topology
from global_planner.types import Budget
from router import config as router
from tests.topology.refusals import EXAMPLE, P0, P1, both, changed, put


def topology(*changes) -> Topology:
    return parse_topology(json.dumps(changed(both(*changes))), source="t", folder=EXAMPLE.parent)


def test_a_topology_survives_being_written_down_and_read_again() -> None:
    """Parts that run in processes of their own get it as JSON, wherever their folder is."""
    whole = topology(put("budget.gpus.h200", {}), put(f"{P0}.planner", {"extensions": {"hold_s": 5}}))
    assert parse_topology(whole.model_dump_json(), source="t", folder=EXAMPLE.parent.parent) == whole


def test_budget_limits_floors_and_what_is_unlimited() -> None:
    h100 = {"max": 14, "min_total": 6, "surplus_pools": ["chat-decode"]}
    assert compiled.budget_of(topology(put("budget.gpus.h100", h100), put("budget.gpus.h200", {}))) == Budget(
        max_gpus={"h100": 14}, min_total_gpus={"h100": 6}
    )


def test_groups_and_pools_as_the_arbiter_sees_them() -> None:
    whole = topology(
        put("groups.0.priority", 3),
        put(f"{P1}.guarantee_replicas", 2),
        put(f"{P1}.gpus_per_replica", 2),
        put(f"{P1}.mode", "observe"),
        put(f"{P1}.component", "VllmDecodeWorker"),
        put("cluster.namespace", "serving"),
        put("arbiter.start_limit_s", 77),
    )
    chat, code = compiled.group_specs(whole)
    assert (chat.model, chat.priority_class, chat.weight, chat.ttft_ms, chat.itl_ms) == ("demo/chat", 3, 2.0, 6000.0, 500.0)
    assert (code.priority_class, code.weight) == (0, 1.0)
    assert chat.pools == ("chat-prefill-short", "chat-decode", "chat-prefill-long")
    specs = {spec.name: spec for spec in compiled.pool_specs(whole)}
    assert set(specs) == {*chat.pools, *code.pools}
    assert asdict(specs["chat-decode"]) == {
        "name": "chat-decode",
        "group": "chat",
        "role": "decode",
        "gpu_type": "h100",
        "gpus_per_replica": 2,
        "dgd": "chat-main",
        "component": "VllmDecodeWorker",
        "namespace": "serving",
        "min_replicas": 1,
        "max_replicas": 8,
        "guarantee_replicas": 2,
        "mode": "observe",
        "start_limit_s": 77.0,
        "growth_cap": None,
    }


def test_the_cluster_starts_with_the_minima() -> None:
    pools = compiled.virtual_pools(topology(put(f"{P1}.min_replicas", 3), put(f"{P1}.gpus_per_replica", 2)))
    decode = next(pool for pool in pools if pool.name == "chat-decode")
    assert (decode.replicas, decode.gpus_per_replica, decode.gpu_type) == (3, 2, "h100")


def test_what_selectors_set_holds_for_cluster_and_planners_too() -> None:
    rules = [
        {"name": "more-decode", "match": {"role": "decode"}, "set": {"min_replicas": 3}},
        {"name": "no-long-prompts", "match": {"pool": "*-long"}, "set": {"min_replicas": 0, "max_replicas": 2}},
    ]
    whole = topology(put("selectors", rules))
    assert {pool.name: pool.replicas for pool in compiled.virtual_pools(whole)} == {
        "chat-prefill-short": 1,
        "chat-decode": 3,
        "chat-prefill-long": 0,
        "code-prefill-short": 1,
        "code-decode": 3,
        "code-prefill-long": 0,
    }
    setups = compiled.planner_setups_of(whole, load_profiles(whole))
    (long,) = setups["chat-long"].pools
    assert (long.min_replicas, long.max_replicas) == (0, 2)
    # The arbiter applies the rules itself and names them; what is configured stays, but the rollout may go as low as they say.
    minima = {spec.name: (spec.min_replicas, spec.max_replicas) for spec in compiled.pool_specs(whole)}
    assert (minima["chat-decode"], minima["chat-prefill-long"]) == ((1, 8), (0, 4))


def test_a_group_may_be_in_a_namespace_of_its_own() -> None:
    whole = topology(put("groups.1.namespace", "team-a"))
    assert {spec.group: spec.namespace for spec in compiled.pool_specs(whole)} == {"chat": "demo", "code": "team-a"}
    setups = compiled.planner_setups_of(whole, load_profiles(whole))
    assert (setups["chat-main"].config.namespace, setups["code-main"].config.namespace) == (
        "demo-chat-main",
        "team-a-code-main",
    )
    labels = [pool.namespace_label for model in compiled.router_config_of(whole).models for pool in model.pools]
    assert labels[0] == "demo_chat_main" and labels[-1] == "team_a_code_long"


def test_engines_get_their_groups_limits_and_their_pools_profile_and_can_read_them() -> None:
    whole = topology(put("groups.0.engine", {"max_model_len": 9000, "max_kv_tokens": 100000, "tokens_per_chunk": 7}))
    specs = compiled.engine_specs(whole, load_profiles(whole))
    decode = specs["chat-decode"]
    assert (decode.role, decode.model, decode.max_model_len) == ("decode", "demo/chat", 9000)
    assert (decode.kv_capacity_tokens, decode.tokens_per_chunk) == (100000, 7)
    assert specs["code-decode"].kv_capacity_tokens == 262144
    for spec in specs.values():
        again = spec_from_raw(json.loads(json.dumps(raw_spec(spec))), source="spec")
        assert raw_spec(again) == raw_spec(spec)


def test_the_router_can_read_its_configuration_and_sends_each_prompt_to_one_pool() -> None:
    whole = topology(put("groups.0.priority", 3), put(f"{P1}.max_in_flight", 9), put("router.port", 8000))
    config = compiled.router_config_of(whole, admin_token_file="/run/token", planner_url="http://127.0.0.1:9")
    assert router.validate(json.loads(config.model_dump_json())) == config
    assert (config.listen.port, config.admin.host, config.admin.token_file) == (8000, "127.0.0.1", "/run/token")
    assert (config.queue.deadline_s, config.queue.limit, config.queue.plan_valid_s) == (60.0, 1000, 15.0)
    assert (config.timeouts.total_s, config.planner_url) == (900.0, "http://127.0.0.1:9")
    chat = config.models[0]
    assert (chat.model, chat.group, chat.priority_class) == ("demo/chat", "chat", 3)
    assert [(pool.name, pool.namespace_label, pool.isl_max_tokens, pool.max_in_flight) for pool in chat.pools] == [
        ("chat-prefill-short", "demo_chat_main", 2048, None),
        ("chat-decode", "demo_chat_main", None, 9),
        ("chat-prefill-long", "demo_chat_long", None, None),
    ]


def test_admission_by_sla_bounds_what_an_engine_has_before_it_and_how_long_a_request_waits() -> None:
    """TTFT 6 s, hand-off 50 ms and one and a half decode steps of 500 ms: 0.35 of 5.2 s is 1.82 s, in which the
    demo's engine computes 2,235 tokens (200 ms + 0.72 ms each). Half of the TTFT is for the turn at the router."""
    profiles = load_profiles(topology())
    chat = compiled.router_config_of(topology(), profiles=profiles).models[0]
    assert chat.patience_s == pytest.approx(3.0) and chat.waiting_order == "shortest"
    assert [pool.max_outstanding_tokens for pool in chat.pools] == [
        pytest.approx(2235, abs=5),
        None,
        pytest.approx(2235, abs=5),
    ]
    rates = topology(put("arbiter.admission", "rate"))
    for plain in (compiled.router_config_of(rates, profiles=profiles), compiled.router_config_of(topology())):
        assert {(model.patience_s, model.waiting_order) for model in plain.models} == {(None, "arrival")}
        assert {pool.max_outstanding_tokens for model in plain.models for pool in model.pools} == {None}


def test_no_phase_of_a_request_may_take_longer_than_the_whole() -> None:
    timeouts = compiled.router_config_of(topology(put("router.request_timeout_s", 60))).timeouts
    assert {timeouts.total_s, timeouts.prefill_s, timeouts.first_byte_s, timeouts.idle_s} == {60.0}


def test_one_planner_for_each_dgd_with_what_the_topology_says_in_its_configuration() -> None:
    whole = topology(
        put("groups.0.planner", {"load_predictor": "constant", "extensions": {"hold_s": 5.0, "idle_hold_s": 9.0}}),
        put(f"{P0}.planner", {"extensions": {"hold_s": 7.0}}),
        put(f"{P1}.min_replicas", 3),
    )
    setups = compiled.planner_setups_of(whole, load_profiles(whole))
    assert list(setups) == ["chat-main", "chat-long", "code-main", "code-long"]
    main, long = setups["chat-main"], setups["chat-long"]
    assert (main.config.mode, long.config.mode) == ("disagg", "prefill")
    assert (main.config.ttft, main.config.itl, main.config.backend, main.config.environment) == (
        6000.0,
        500.0,
        "mocker",
        "global-planner",
    )
    assert (main.config.namespace, main.config.model_name) == ("demo-chat-main", "demo/chat")
    assert (main.config.min_endpoint, main.config.max_gpu_budget, main.max_gpus) == (1, 14, None)
    # The narrower section wins, setting by setting; a DGD's planner takes what stands at any of its pools.
    assert (main.config.load_predictor, setups["code-main"].config.load_predictor) == ("constant", "kalman")
    assert (main.config.extensions.hold_s, long.config.extensions.hold_s) == (7.0, 5.0)
    assert main.config.extensions.idle_hold_s == 9.0
    assert main.config.extensions.cold_start_s == 30.0
    prefill, decode = main.pools
    assert (prefill.name, prefill.role, prefill.min_replicas, prefill.max_replicas) == ("chat-prefill-short", "prefill", 1, 6)
    assert (decode.name, decode.min_replicas, decode.max_replicas, decode.cold_start_s) == ("chat-decode", 3, 8, 30.0)
    assert (prefill.ttft_offset_ms, decode.ttft_offset_ms) == (50.0 + 1.5 * 500.0, 0.0)
    assert prefill.engine is not None and decode.engine is not None


@pytest.mark.parametrize(
    ("budget", "gpus", "most", "expected"),
    [(14, 2, None, 7), (14, 2, 3, 3), (14, 2, 9, 7), (None, 2, None, compiled.MOST_REPLICAS), (None, 2, 90, 90)],
)
def test_a_demand_curve_goes_as_far_as_pool_and_budget_allow(
    budget: int | None, gpus: int, most: int | None, expected: int
) -> None:
    limits = {"max": budget} if budget else {}
    whole = topology(put("budget.gpus.h100", limits), put(f"{P1}.gpus_per_replica", gpus), put(f"{P1}.max_replicas", most))
    setups = compiled.planner_setups_of(whole, load_profiles(whole))
    assert setups["chat-main"].pools[1].max_replicas == expected
