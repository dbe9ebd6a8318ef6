"""`python -m pool_planner` with `environment: kubernetes`, on a real API server: it scales its own DGD and no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube.leader import PLANNER_RULES
from tests.kube.manifests import ADAPTERS, DGDS, create
from tests.kube.operator import Operator
from tests.kube.server import ApiServer, call
from tests.standalone.front_door import FrontDoor
from tests.standalone.process import Planner, config


@pytest.fixture
def busy(namespace: str) -> Iterator[FrontDoor]:
    door = FrontDoor(namespace=f"{namespace}-mine", speed=1.0, rps=1.5)
    yield door
    door.close()


@pytest.fixture
def operator(server: ApiServer, namespace: str) -> Iterator[Operator]:
    """One that looks every half second and is quick."""
    working = Operator(server.api(), namespace, time.time, cold_start_s=0.0, termination_s=0.0)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.5):
            working.reconcile()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield working
    stop.set()
    thread.join(10)


@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "no adapters"])
def test_it_scales_its_own_dgd(
    server: ApiServer, namespace: str, operator: Operator, busy: FrontDoor, tmp_path: Path, adapters: bool
) -> None:
    for name in ("mine", "theirs"):
        create(server, namespace, name, "v1beta1", {"agg": (1, 2)}, adapters=adapters)
    patch = [{"apiGroups": ["nvidia.com"], "resources": ["dynamographdeployments"], "verbs": ["patch"]}]
    server.role(namespace, "planner", [*PLANNER_RULES, *([] if adapters else patch)])
    given = config(busy.url, environment="kubernetes", namespace=f"{namespace}-mine", backend="mocker", max_gpu_budget=16)
    given["throughput_adjustment_interval"] = 2
    environment = {
        "KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig", "planner")),
        "PLANNER_SPEED": "1.0",
        "PLANNER_ORIGIN": "0.0",
    }
    with Planner(given, "--dgd", "mine", environment=environment) as planner:
        # GPUs of a replica come from the manifest: nobody has to say them again.
        assert planner.until("started", within_s=60)["gpus_per_replica"] == {"decode": 2}
        ordered = planner.until("kubernetes", within_s=60)["text"]
        assert ordered.startswith("decode: ordered 1 -> ")
        wanted = int(ordered.rpartition(" ")[2])
        assert 1 < wanted <= 8
        planner.until("decision", within_s=60, ready=wanted)
        assert replicas(server, namespace, "mine", adapters) == wanted
        assert replicas(server, namespace, "theirs", adapters) == 1
        assert planner.stop() == 0


def test_what_it_may_not_do_is_told(server: ApiServer, namespace: str, tmp_path: Path, busy: FrontDoor) -> None:
    create(server, namespace, "mine", "v1alpha1", {"agg": (1, 2)}, adapters=False)
    server.role(namespace, "other", [])
    given = config(busy.url, environment="kubernetes", namespace=f"{namespace}-mine")
    environment = {"KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig", "person"))}
    with Planner(given, "--dgd", "mine", environment=environment) as planner:
        assert "dynamographdeployments" in planner.until("text", within_s=60)["text"]
        assert planner.process.wait(10) == 1


def replicas(server: ApiServer, namespace: str, name: str, adapters: bool) -> int:
    if adapters:
        (path,) = [f"{ADAPTERS.format(namespace)}/{name}-agg"]
        found: Any = call(server.admin, "GET", path, None)
        return int(found["spec"]["replicas"])
    found = call(server.admin, "GET", f"{DGDS.format('v1beta1', namespace)}/{name}", None)
    return int(next(item["replicas"] for item in found["spec"]["components"] if item["name"] == "agg"))
