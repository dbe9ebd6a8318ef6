"""Profiles of Hypothesis: `make test` uses `ci` (500 examples, the same ones every time); HYPOTHESIS_PROFILE=nightly tries
20,000 new ones, HYPOTHESIS_PROFILE=quick 50. With PLANNER_COMPILED=auto the arbiter runs as it is compiled here.

And two marks, given by place. `system`: starts whole systems or servers and waits for them most of the time, with limits that
leave room for a neighbour. `alone`: compares durations on the wall clock, and would measure its neighbours."""

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
# The longest first, so that two workers end together.
SYSTEM = (
    "jobs",
    "router/test_churn.py",
    "e2e",
    "kube",
    "profiler",
    "router",
    "api",
    "cluster/test_cluster_process.py",
    "deploy",
    "planner/test_live_prometheus.py",
    "planner/test_prometheus.py",
    "planner/test_scrape.py",
    "planner/test_discovery.py",
    "replay/test_prometheus_source.py",
    "standalone",
    "test_command_line.py",
    "test_processes.py",
    "test_ray_ward.py",
    "test_stopping.py",
)
ALONE = (
    "engine/test_engine_process.py",
    "engine/test_twin.py",
    "test_clock.py",
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item, places: Sequence[str]) -> int | None:
        place = item.path.relative_to(HERE).as_posix()
        return next((number for number, one in enumerate(places) if place == one or place.startswith(one + "/")), None)

    for item in items:
        for mark, places in (("system", SYSTEM), ("alone", ALONE)):
            if rank(item, places) is not None:
                item.add_marker(mark)
    items.sort(key=lambda item: -1 if (found := rank(item, SYSTEM)) is None else found)


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
