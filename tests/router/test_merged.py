"""The metrics of several processes as one, and the limits that they share."""

from __future__ import annotations

import pytest

from router.config import ConfigError, validate
from router.merged import merge
from router.workers import share

ONE = """# HELP n_total Requests.
# TYPE n_total counter
n_total{model="m"} 2
# TYPE h histogram
h_bucket{le="1"} 1
h_bucket{le="+Inf"} 2
h_sum 1.25
h_count 2
# TYPE dynamo_frontend_worker_last_inter_token_latency_seconds gauge
dynamo_frontend_worker_last_inter_token_latency_seconds{worker_id="a b"} 0.5
# TYPE global_planner_router_plan_in_force gauge
global_planner_router_plan_in_force 1
"""
TWO = """# HELP n_total Requests.
# TYPE n_total counter
n_total{model="m"} 3
n_total{model="k"} 1
# TYPE h histogram
h_bucket{le="1"} 0
h_bucket{le="+Inf"} 1
h_sum 3.5
h_count 1
# TYPE dynamo_frontend_worker_last_inter_token_latency_seconds gauge
dynamo_frontend_worker_last_inter_token_latency_seconds{worker_id="a b"} 0.25
# TYPE global_planner_router_plan_in_force gauge
global_planner_router_plan_in_force 0
"""
BOTH = """# HELP n_total Requests.
# TYPE n_total counter
n_total{model="m"} 5
n_total{model="k"} 1
# TYPE h histogram
h_bucket{le="1"} 1
h_bucket{le="+Inf"} 3
h_sum 4.75
h_count 3
# TYPE dynamo_frontend_worker_last_inter_token_latency_seconds gauge
dynamo_frontend_worker_last_inter_token_latency_seconds{worker_id="a b"} 0.5
# TYPE global_planner_router_plan_in_force gauge
global_planner_router_plan_in_force 0
"""


def test_series_add_up_except_those_that_do_not() -> None:
    assert merge([ONE, TWO]) == BOTH
    assert merge([ONE]) == ONE


def test_limits_are_shared() -> None:
    pool = {"name": "a", "role": "agg", "max_in_flight": 7}
    config = validate({"models": [{"model": "m", "own_admitted_rps": 9, "pools": [pool]}], "queue": {"limit": 100}})
    part = share(config, 3)
    assert (part.models[0].pools[0].max_in_flight, part.models[0].own_admitted_rps, part.queue.limit) == (2, 3.0, 34)
    with pytest.raises(ConfigError, match="max_in_flight 7 cannot be shared by 8 processes"):
        share(config, 8)
