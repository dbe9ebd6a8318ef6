"""What a topology is refused for: one change of a topology that is right, and the line that tells of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-models" / "topology.yaml"
PROFILE = EXAMPLE.parent / "profile"
# Of the example's shape, but its own: who tunes the example changes none of the numbers below.
BASE = Path(__file__).parent / "base.yaml"
RAW: dict[str, Any] = yaml.safe_load(BASE.read_text())


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    change(raw)
    return raw


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """`put("groups.0.pools.1.role", "x")`; value None removes."""
    *way, last = path.split(".")

    def change(raw: dict[str, Any]) -> None:
        at: Any = raw
        for part in way:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        key: Any = int(last) if isinstance(at, list) else last
        if value is None:
            del at[key]
        else:
            at[key] = value

    return change


def both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for one in changes:
            one(raw)

    return change


# ---- what is refused, one thing at a time ----------------------------------------------------------------------------

P0, P1, P2 = "groups.0.pools.0", "groups.0.pools.1", "groups.0.pools.2"
LIMIT, SELECTOR, SCHEDULE = "budget.limits.0", "selectors.0", "schedules.0"
POOLS = "pools: chat-prefill-short, chat-decode, chat-prefill-long, code-prefill-short, code-decode, code-prefill-long"
NO_AGG = "a group needs prefill and decode pools, or agg pools"
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    # nodes
    "a replica that does not divide": (
        both(put(f"{P0}.gpus_per_replica", 3), put(f"{P0}.nodes_per_replica", 2)),
        "groups[0].pools[0].nodes_per_replica: 2 does not divide gpus_per_replica (3): each node has an equal part of a "
        "replica's GPUs",
    ),
    "nodes of an unknown GPU type": (
        put("cluster.nodes", [{"gpu_type": "h20", "gpus": 8}]),
        "cluster.nodes[0].gpu_type: 'h20' is not in budget.gpus (has: h100)",
    ),
    # single fields
    "unknown key": (put("cluster.cold_start", 3), "cluster.cold_start: unknown key; did you mean 'cold_start_s'?"),
    "unknown section": (put("budgets", {}), "budgets: unknown key; did you mean 'budget'?"),
    "a cluster of another kind": (
        put("cluster.kind", "slurm"),
        "cluster.kind: 'slurm': must be 'virtual' or 'kubernetes'",
    ),
    "Kubernetes settings without Kubernetes": (
        put("cluster.kubernetes", {"context": "prod"}),
        "cluster.kubernetes: is of cluster.kind: kubernetes only (cluster.kind is virtual)",
    ),
    "a virtual setting with Kubernetes": (
        put("cluster", {"kind": "kubernetes", "termination_s": 3.0}),
        "cluster.termination_s: is of cluster.kind: virtual only (cluster.kind is kubernetes)",
    ),
    "a Kubernetes setting that is none": (
        put("cluster", {"kind": "kubernetes", "kubernetes": {"contxt": "prod"}}),
        "cluster.kubernetes.contxt: unknown key; did you mean 'context'?",
    ),
    "a calendar of its own with Kubernetes": (
        both(put("cluster", {"kind": "kubernetes"}), put("arbiter.calendar_start", "2026-07-01T08:50:00+02:00")),
        "arbiter.calendar_start: is of cluster.kind: virtual only",
    ),
    "a pod with a kubeconfig": (
        put("cluster", {"kind": "kubernetes", "kubernetes": {"access": "in-cluster", "context": "prod"}}),
        "cluster.kubernetes.context: a pod's service account (access: in-cluster) reads no kubeconfig",
    ),
    "a write that outlives its lease": (
        put("cluster", {"kind": "kubernetes", "kubernetes": {"lease_s": 20.0, "write_deadline_s": 20.0}}),
        "cluster.kubernetes.write_deadline_s: 20 must be less than lease_s (20)",
    ),
    "a lease that ends between two rounds": (
        both(
            put("cluster", {"kind": "kubernetes", "kubernetes": {"lease_s": 11.0}}),
            put("arbiter.round_interval_s", 11.0),
        ),
        "cluster.kubernetes.lease_s: 11 must be more than arbiter.round_interval_s (11), at which it is renewed",
    ),
    "nothing near": (
        put("groups.0.sla.xyz", 1),
        "groups[0].sla.xyz: unknown key (known: itl_ms, ttft_ms)",
    ),
    "missing": (put(f"{P0}.gpu_type", None), "groups[0].pools[0].gpu_type: is missing"),
    "wrong type": (
        put(f"{P0}.min_replicas", "two"),
        "groups[0].pools[0].min_replicas: 'two': must be a valid integer",
    ),
    "a number in quotes": (put("budget.gpus.h100.max", "8"), "budget.gpus.h100.max: '8': must be a valid integer"),
    "a flag as a number": (
        put(f"{P0}.gpus_per_replica", True),
        "groups[0].pools[0].gpus_per_replica: True: must be a valid integer",
    ),
    "out of range": (put("groups.0.weight", 0), "groups[0].weight: 0: must be greater than 0"),
    "not a mapping": (put("router", 3), "router: 3: must be a mapping"),
    "unknown role": (
        put(f"{P0}.role", "prefil"),
        "groups[0].pools[0].role: 'prefil': must be 'prefill', 'decode' or 'agg'",
    ),
    "a name that no cluster takes": (
        put("name", "Two Models"),
        "name: 'Two Models': must be lower-case letters, digits and inner hyphens",
    ),
    "no groups": (put("groups", []), "groups: must not be empty"),
    # names
    "two pools of one name": (
        put("groups.1.pools.0.name", "chat-decode"),
        "groups[1].pools[0].name: 'chat-decode' is a pool already, at groups[0].pools[1].name",
    ),
    "two groups of one name": (put("groups.1.name", "chat"), "groups[1].name: 'chat' is a group already, at groups[0].name"),
    "two groups of one model": (
        put("groups.1.model", "Demo/Chat"),
        "groups[1].model: 'Demo/Chat' is a model already, at groups[0].model",
    ),
    # GPUs
    "unknown GPU type": (
        both(put(f"{P1}.gpu_type", "h20"), put("budget.gpus.h200", {"max": 8})),
        "groups[0].pools[1].gpu_type: 'h20' is not in budget.gpus (has: h100, h200)",
    ),
    "minima over the budget": (
        both(put("budget.gpus.h100.max", 7), put(f"{P1}.min_replicas", 2), put(f"{P1}.gpus_per_replica", 2)),
        "budget.gpus.h100.max: 7 is less than the 9 GPUs of the minima together (chat-prefill-short 1 x 1, chat-decode 2 x 2, "
        "chat-prefill-long 1 x 1, code-prefill-short 1 x 1, code-decode 1 x 1, code-prefill-long 1 x 1)",
    ),
    "guarantees over the budget": (
        both(put("budget.gpus.h100.max", 8), put(f"{P1}.guarantee_replicas", 4)),
        "budget.gpus.h100.max: 8 is less than the 9 GPUs of the minima and guarantees together (chat-prefill-short 1 x 1, "
        "chat-decode 4 x 1, chat-prefill-long 1 x 1, code-prefill-short 1 x 1, code-decode 1 x 1, code-prefill-long 1 x 1)",
    ),
    "a replica over the budget": (
        both(put(f"{P2}.gpus_per_replica", 16), put(f"{P2}.min_replicas", 0)),
        "groups[0].pools[2].gpus_per_replica: 16 is more than budget.gpus.h100.max (14): no replica could ever start",
    ),
    "min over max": (
        put(f"{P1}.min_replicas", 9),
        "groups[0].pools[1].min_replicas: 9 is more than max_replicas (8)",
    ),
    "guarantee over max": (
        put(f"{P0}.guarantee_replicas", 7),
        "groups[0].pools[0].guarantee_replicas: 7 is more than max_replicas (6)",
    ),
    "a floor over the budget": (
        put("budget.gpus.h100", {"max": 14, "min_total": 15, "surplus_pools": ["chat-decode"]}),
        "budget.gpus.h100.min_total: 15 is more than max (14)",
    ),
    "a floor that nobody keeps": (
        put("budget.gpus.h200", {"min_total": 2}),
        "budget.gpus.h200.min_total: 2: say in surplus_pools which pools keep what nobody asks for (pools of that type: none)",
    ),
    "a keeper of other GPUs": (
        put("budget.gpus.h200", {"min_total": 2, "surplus_pools": ["chat-decode"]}),
        "budget.gpus.h200.surplus_pools[0]: 'chat-decode' is not a pool on GPUs of type 'h200' (pools of that type: none)",
    ),
    # stages
    "no decode": (put(P1, None), f"groups[0].pools: no decode pool (has: prefill); {NO_AGG}"),
    "no prefill": (both(put(P2, None), put(P0, None)), f"groups[0].pools: no prefill pool (has: decode); {NO_AGG}"),
    "agg and half a path": (
        both(put(f"{P1}.role", "agg"), put(f"{P1}.dgd", "other")),
        f"groups[0].pools: no decode pool (has: agg, prefill); {NO_AGG}",
    ),
    "long prompts without a pool": (
        put(f"{P2}.isl_max_tokens", 9000),
        "groups[0].pools: prompts over 9000 tokens have no prefill pool: exactly one prefill pool must be without "
        "isl_max_tokens",
    ),
    "two pools for any prompt": (
        put(f"{P0}.isl_max_tokens", None),
        "groups[0].pools: chat-prefill-short, chat-prefill-long all take prompts of any length: exactly one prefill pool may "
        "be without isl_max_tokens",
    ),
    "two pools of one limit": (
        lambda raw: raw["groups"][0]["pools"].append({**raw["groups"][0]["pools"][0], "name": "twin", "dgd": "twin"}),
        "groups[0].pools[3].isl_max_tokens: 2048 is the limit of 'chat-prefill-short' too: one of the two would get no prompts",
    ),
    "a limit beyond every prompt": (
        put(f"{P0}.isl_max_tokens", 131072),
        "groups[0].pools[0].isl_max_tokens: 131072 is not below engine.max_model_len (131072): leave it out",
    ),
    # DGDs
    "a DGD of two groups": (
        put("groups.1.pools.2.dgd", "chat-long"),
        "groups[1].pools[2].dgd: DGD 'chat-long' holds pool 'chat-prefill-long' of groups[0] already; the pools of a DGD are "
        "of one group",
    ),
    "two components of one name": (
        put(f"{P1}.component", "prefill"),
        "groups[0].pools[1].dgd: DGD 'chat-main' has component 'prefill' already (chat-prefill-short); set component, or "
        "another dgd",
    ),
    "two prefill pools in a DGD": (
        both(put(f"{P2}.dgd", "chat-main"), put(f"{P2}.component", "long")),
        "groups[0].pools[2].dgd: DGD 'chat-main' holds prefill pool 'chat-prefill-short', decode pool 'chat-decode' already; "
        "a DGD has one pool, or one prefill and one decode pool",
    ),
    # profiles and engines
    "no such profile": (
        put(f"{P0}.profile", "nowhere"),
        f"groups[0].pools[0].profile: 'nowhere' is not a directory ({EXAMPLE.parent / 'nowhere'})",
    ),
    "a KV cache too small for the longest request": (
        put("groups.0.engine.max_model_len", 300000),
        "groups[0].engine.max_model_len: 300000: the KV cache of 'chat-decode' holds 262144 tokens, less than the longest "
        "request (max_model_len 300000), which could never run",
    ),
    "a KV cache set too small": (
        put("groups.0.engine.max_kv_tokens", 1000),
        "groups[0].engine.max_kv_tokens: 1000: the KV cache of 'chat-decode' holds 1000 tokens, less than the longest "
        "request (max_model_len 131072), which could never run",
    ),
    # router
    "two listeners, one port": (
        both(put("router.port", 8000), put("router.admin_port", 8000)),
        "router.admin_port: 8000 is router.port too; the two listeners need two ports",
    ),
    "a host that others can reach": (
        put("router.host", "0.0.0.0"),
        "router.host: '0.0.0.0' can be reached from other machines; if that is meant, set router.allow_remote: true",
    ),
    # planner settings
    "an SLA said twice": (
        put(f"{P1}.planner", {"ttft": 500}),
        "groups[0].pools[1].planner.ttft: 500 contradicts groups[0].sla.ttft_ms, which says 6000.0: leave it out here",
    ),
    "an SLA said twice, with its unit": (
        put("groups.1.planner", {"itl_ms": 50}),
        "groups[1].planner.itl_ms: 50 contradicts groups[1].sla.itl_ms, which says 500.0: leave it out here",
    ),
    "a minimum said twice": (
        put(f"{P0}.planner", {"min_endpoint": 2}),
        "groups[0].pools[0].planner.min_endpoint: 2 contradicts groups[0].pools[0].min_replicas, which says 1: leave it "
        "out here",
    ),
    "a GPU budget said twice": (
        put("groups.0.planner", {"max_gpu_budget": -1}),
        "groups[0].planner.max_gpu_budget: -1 contradicts budget.gpus.h100.max, which says 14: leave it out here",
    ),
    "a mode that the roles contradict": (
        put(f"{P2}.planner", {"mode": "decode"}),
        "groups[0].pools[2].planner.mode: 'decode' contradicts the roles of the pools of DGD chat-long, which says 'prefill': "
        "leave it out here",
    ),
    "a cold start said twice": (
        put("planner.extensions", {"cold_start_s": 60}),
        "planner.extensions.cold_start_s: 60 contradicts cluster.cold_start_s, which says 30.0: leave it out here",
    ),
    "an unknown planner field": (
        put("planner.load_predicter", "kalman"),
        "planner.load_predicter: unknown field; did you mean load_predictor?",
    ),
    "an unknown extension": (
        put("groups.1.planner", {"extensions": {"holds": 3}}),
        "groups[1].planner.extensions.holds: unknown field; did you mean hold_s?",
    ),
    "a rule between planner fields": (
        put("planner.enable_throughput_scaling", False),
        "planner.enable_throughput_scaling: enable_throughput_scaling, enable_load_scaling: both are false; at least one "
        "scaling mode must be enabled",
    ),
    "one planner, two opinions": (
        both(put(f"{P0}.planner", {"kalman_r": 3}), put(f"{P1}.planner", {"kalman_r": 4})),
        "groups[0].pools[1].planner.kalman_r: 4, but 3 for 'chat-prefill-short', which has the same planner (DGD)",
    ),
    # limits
    "a limit of nothing": (put(f"{LIMIT}.max_gpus", None), "budget.limits[0]: set either max_gpus or max_cost_per_hour"),
    "a limit of two things": (
        put(f"{LIMIT}.max_cost_per_hour", 5),
        "budget.limits[0]: set either max_gpus or max_cost_per_hour",
    ),
    "a limit of an unknown type": (
        put(f"{LIMIT}.gpu_type", "h20"),
        "budget.limits[0].gpu_type: 'h20' is not in budget.gpus (has: h100)",
    ),
    "a limit of a namespace without pools": (
        put(f"{LIMIT}.namespace", "team-*"),
        "budget.limits[0].namespace: no pool is in namespace 'team-*' (has: demo)",
    ),
    "a limit of a type without pools": (
        both(put("budget.gpus.h200", {}), put(f"{LIMIT}.gpu_type", "h200")),
        "budget.limits[0].gpu_type: no pool that it would limit is on GPUs of type 'h200'",
    ),
    "cost without a price": (
        both(put("budget.gpus.h100", {"max": 14}), put("budget.limits", [{"name": "spend", "max_cost_per_hour": 99}])),
        "budget.limits[0].max_cost_per_hour: counts cost, so budget.gpus.h100.price_per_hour must be set",
    ),
    "minima over a limit": (
        put("budget.limits", [{"name": "team", "namespace": "demo", "max_gpus": 5}]),
        "budget.limits[0].max_gpus: 5 is less than the 6 GPUs of the minima together (chat-prefill-short 1 x 1",
    ),
    "minima that cost too much": (
        put("budget.limits", [{"name": "spend", "max_cost_per_hour": 12}]),
        "budget.limits[0].max_cost_per_hour: 12 is less than what the minima together cost: 15 (chat-prefill-short 1 x 1",
    ),
    "two limits of one name": (
        put("budget.limits", [{"name": "team", "max_gpus": 9}] * 2),
        "budget.limits[1].name: 'team' is a limit already, at budget.limits[0].name",
    ),
    # selectors
    "a selector that sets nothing": (
        put(f"{SELECTOR}.set", {}),
        "selectors[0].set: sets nothing (may set: min_replicas, guarantee_replicas, max_replicas, priority, weight)",
    ),
    "a weight by pool": (
        put(f"{SELECTOR}.match.pool", "chat-*"),
        "selectors[0].set.weight: belongs to groups, so its rule may match by group, model and namespace, not by pool",
    ),
    "a selector of no pool": (put(f"{SELECTOR}.match.group", "chatt"), f"selectors[0].match: matches no pool ({POOLS})"),
    "a selector of an unknown type": (
        put(SELECTOR, {"name": "x", "match": {"gpu_type": "h20"}, "set": {"max_replicas": 2}}),
        "selectors[0].match.gpu_type: 'h20' is not in budget.gpus (has: h100)",
    ),
    "a selector whose range is empty": (
        put(f"{SELECTOR}.set", {"min_replicas": 3, "max_replicas": 2}),
        "selectors[0].set.min_replicas: 3 is more than max_replicas (2)",
    ),
    "minima of a selector over the budget": (
        put(SELECTOR, {"name": "x", "match": {"role": "decode"}, "set": {"min_replicas": 6}}),
        "budget.gpus.h100.max: 14 is less than the 16 GPUs of the minima together (chat-prefill-short 1 x 1, chat-decode 6 x 1",
    ),
    "an unknown matcher": (put(f"{SELECTOR}.match.pools", "x"), "selectors[0].match.pools: unknown key; did you mean 'pool'?"),
    # schedules
    "a time that YAML makes a number": (
        put(f"{SCHEDULE}.start", 600),
        'schedules[0].start: 600: must be a time of day in quotes, like "10:00" (without them, YAML reads 10:00 as',
    ),
    "no time of day": (put(f"{SCHEDULE}.start", "25:00"), "schedules[0].start: '25:00': must be a time of day like \"09:00\""),
    "no time zone": (
        put(f"{SCHEDULE}.timezone", "Europe/Bern"),
        "schedules[0].timezone: 'Europe/Bern': must be a time zone like UTC or Europe/Berlin",
    ),
    "no date": (
        both(put(f"{SCHEDULE}.days", None), put(f"{SCHEDULE}.date", "2026-13-01")),
        "schedules[0].date: '2026-13-01': must be a date like 2026-07-01",
    ),
    "days and a date": (
        put(f"{SCHEDULE}.date", "2026-07-01"),
        "schedules[0].date: say either days (every week) or a date (once), not both",
    ),
    "an unknown day": (put(f"{SCHEDULE}.days", ["monday"]), "schedules[0].days[0]: 'monday': must be 'mon', 'tue', 'wed',"),
    "a schedule of two things": (
        put(f"{SCHEDULE}.set.min_replicas", 2),
        "schedules[0].set: set either min_replicas or load_factor",
    ),
    "a schedule of nothing": (put(f"{SCHEDULE}.set", {}), "schedules[0].set: set either min_replicas or load_factor"),
    "a schedule of no pool": (put(f"{SCHEDULE}.match.pool", "chatt"), f"schedules[0].match: matches no pool ({POOLS})"),
    "minima of an event over the budget": (
        put(f"{SCHEDULE}.set", {"min_replicas": 4}),
        "schedules[0].set.min_replicas: 4: while it lasts, the minima together need 15 GPUs (chat-prefill-short 4 x 1",
    ),
    # the arbiter
    "a back-off over its most": (
        both(put("arbiter.backoff_s", 90), put("arbiter.backoff_max_s", 60)),
        "arbiter.backoff_s: 90 is more than backoff_max_s (60)",
    ),
    "a moment without its offset": (
        put("arbiter.calendar_start", "2026-07-01T08:50:00"),
        "arbiter.calendar_start: '2026-07-01T08:50:00': must be a date and time with its offset, like",
    ),
    "an unknown mode of the whole": (
        put("arbiter.mode", "watch"),
        "arbiter.mode: 'watch': must be 'act', 'approve' or 'observe'",
    ),
    # overrides
    "a pin to nothing": (
        put("overrides", [{"pool": "chat-decode", "kind": "pin"}]),
        "overrides[0].replicas: is missing: pin to how many?",
    ),
    "a hold with a number": (
        put("overrides", [{"pool": "chat-decode", "kind": "hold", "replicas": 2}]),
        "overrides[0].replicas: a hold has none",
    ),
    "an override of no pool": (
        put("overrides", [{"pool": "chat", "kind": "hold"}]),
        f"overrides[0].pool: 'chat' is not a pool ({POOLS})",
    ),
    "a pin over the budget": (
        put("overrides", [{"pool": "chat-decode", "kind": "pin", "replicas": 15}]),
        "overrides[0].replicas: 15 take 15 GPUs, more than budget.gpus.h100.max (14)",
    ),
    "two overrides of one kind": (
        put("overrides", [{"pool": "chat-decode", "kind": "hold"}] * 2),
        "overrides[1]: 'hold of chat-decode' is an override already, at overrides[0]",
    ),
}
