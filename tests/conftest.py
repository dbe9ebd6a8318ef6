"""Profiles of Hypothesis: `make test` uses `ci` (500 examples, the same ones every time); HYPOTHESIS_PROFILE=nightly tries
20,000 new ones, HYPOTHESIS_PROFILE=quick 50. With PLANNER_COMPILED=auto the arbiter runs as it is compiled here.

And two marks, given by place. `system`: starts whole systems or servers and waits for them most of the time, with limits that
leave room for a neighbour. `alone`: watches the wall clock so closely that it would measure its neighbours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # most tests need no Kubernetes client
    from tests.kube.server import ApiServer

HERE = Path(__file__).parent
SYSTEM = (
    "api",
    "deploy",
    "e2e",
    "jobs",
    "kube",
    "planner/test_live_prometheus.py",
    "planner/test_prometheus.py",
    "profiler",
    "replay/test_prometheus_source.py",
    "standalone",
    "test_command_line.py",
    "test_ray_ward.py",
)
ALONE = (
    "cluster/test_cluster_process.py",
    "engine/test_engine_process.py",
    "engine/test_twin.py",
    "router",
    "test_clock.py",
    "test_processes.py",
    "test_stopping.py",
    "workload/test_load.py",
)

settings.register_profile("ci", max_examples=500, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("nightly", max_examples=20_000, deadline=None, print_blob=True)
settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True, print_blob=True)
os.environ.setdefault("PLANNER_COMPILED", "no")  # the sources are tested, whatever this machine has built of them
if os.environ["PLANNER_COMPILED"] != "no":
    import global_planner.compiled_arbiter  # noqa: F401
os.environ.setdefault("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(HERE).as_posix()
        for mark, places in (("system", SYSTEM), ("alone", ALONE)):
            if any(place == one or place.startswith(one + "/") for one in places):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One API server for all tests that need a real one; each takes a namespace of its own."""
    from tests.kube.server import ApiServer, binaries

    apiserver, etcd = binaries()
    running = ApiServer(folder=tmp_path_factory.mktemp("kube"), apiserver=apiserver, etcd=etcd)
    try:
        running.start()
        running.see_nodes("seer")
        yield running
    finally:
        running.stop()
