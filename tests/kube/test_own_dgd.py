"""`python -m pool_planner` with `environment: kubernetes`, on a real API server: it scales its own DGD and no other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pool_planner.__main__ import main
from pool_planner.connectors.kubernetes import Deployments
from pool_planner.connectors.own_dgd import OwnDgd, Place, observed_gpus
from pool_planner.connectors.writers import OUR_MANAGERS
from pool_planner.types import Proposal
from tests.kube.leader import PATCH_DGDS, PLANNER_RULES
from tests.kube.manifests import ADAPTERS, DGDS, Shape, create
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
    with working.working(0.5):
        yield working


def test_it_scales_its_own_dgd(server: ApiServer, namespace: str, operator: Operator, busy: FrontDoor, tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        create(server, namespace, name, "v1beta1", {"agg": (1, 2)}, adapters=True)
    server.role(namespace, "planner", PLANNER_RULES)
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
        assert replicas(server, namespace, "mine", True) == wanted
        assert replicas(server, namespace, "theirs", True) == 1
        assert planner.stop() == 0


@pytest.mark.parametrize("shape", ["v1alpha1", "v1beta1"])
def test_without_an_adapter_it_patches_its_dgd_and_no_other(server: ApiServer, namespace: str, shape: Shape) -> None:
    """The same connector as in the process above."""
    for name in ("mine", "theirs"):
        create(server, namespace, name, shape, {"agg": (1, 2)}, adapters=False)
    server.role(namespace, "planner", [*PLANNER_RULES, PATCH_DGDS])
    deployments = Deployments(server.api("planner"), [namespace], manager=OUR_MANAGERS[1])
    deployments.start(20.0)
    place = Place(namespace=namespace, dgd="mine", components={"agg": "agg"})
    assert observed_gpus(deployments, place, ["agg"]) == {"agg": 2}
    said: list[str] = []
    planner = OwnDgd(deployments, place, {"pool": "agg"}, note=said.append)
    wanted = Proposal(pool="pool", at_s=0.0, expires_at_s=60.0, load_rps=1.0, wanted=3)
    try:
        assert asyncio.run(planner.grants(0.0))["pool"].replicas_spec == 1
        asyncio.run(planner.carry_out([wanted], [], 0.0))
        assert said == ["pool: ordered 1 -> 3"]
        assert deployments.wait_until(lambda: asyncio.run(planner.grants(0.0))["pool"].replicas_spec == 3, 10.0)
        assert [replicas(server, namespace, name, False) for name in ("mine", "theirs")] == [3, 1]
    finally:
        asyncio.run(planner.close())


def test_what_it_may_not_do_is_told(server: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(server, namespace, "mine", "v1alpha1", {"agg": (1, 2)}, adapters=False)
    server.role(namespace, "other", [])
    given = config("http://127.0.0.1:9/metrics", environment="kubernetes", namespace=f"{namespace}-mine")
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", "person")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    told = CliRunner().invoke(main, ["run", "--config", json.dumps(given), "--dgd", "mine"])
    assert told.exit_code == 1 and "dynamographdeployments" in told.output and "403" in told.output, told.output


def replicas(server: ApiServer, namespace: str, name: str, adapters: bool) -> int:
    if adapters:
        (path,) = [f"{ADAPTERS.format(namespace)}/{name}-agg"]
        found: Any = call(server.admin, "GET", path, None)
        return int(found["spec"]["replicas"])
    spec = call(server.admin, "GET", f"{DGDS.format('v1beta1', namespace)}/{name}", None)["spec"]
    components = [*spec.get("components", ()), *spec.get("services", {}).values()]
    return int(next(item["replicas"] for item in components if item.get("type", item.get("componentType")) == "worker"))
