"""Which versions an API server serves is found out, and each is read and written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pool_planner.connectors.kubernetes import Deployments, Order, Target
from pool_planner.connectors.kubernetes_api import NotFound
from tests.kube.manifests import create
from tests.kube.server import ApiServer, call

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def serve(server: ApiServer, version: str, served: bool) -> None:
    """Serve a version of the DGD or not, and wait until that is so."""
    path = f"{DEFINITIONS}/dynamographdeployments.nvidia.com"
    versions: list[dict[str, Any]] = server.admin.get(path)["spec"]["versions"]
    for item in versions:
        if item["name"] == version:
            item["served"] = served
    call(server.admin, "PATCH", path, {"spec": {"versions": versions}})
    ends = time.monotonic() + 30.0
    while time.monotonic() < ends:
        try:
            found = server.admin.get(f"/apis/nvidia.com/{version}")["resources"]
        except NotFound:
            found = []
        listed = any(item["name"] == "dynamographdeployments" for item in found)
        try:
            server.admin.get(f"/apis/nvidia.com/{version}/dynamographdeployments", deadline_s=20.0)
            answers = True
        except NotFound:
            answers = False
        if listed == answers == served:
            return
        time.sleep(0.05)
    raise AssertionError(f"{version} served: {not served} still")


@pytest.fixture
def alpha_only(server: ApiServer) -> Iterator[None]:
    serve(server, "v1beta1", False)
    yield
    serve(server, "v1beta1", True)


@pytest.mark.usefixtures("alpha_only")
def test_a_cluster_that_serves_v1alpha1_alone(server: ApiServer, namespace: str) -> None:
    create(server, namespace, "chat", "v1alpha1", {"prefill": (1, 2), "decode": (2, 4)}, adapters=False)
    deployments = Deployments(server.api(), [namespace], write_spacing_s=0.0)
    try:
        deployments.start(20.0)
        assert deployments.dgd_version == "v1alpha1"
        target = Target(namespace=namespace, dgd="chat", role="decode", component="decode")
        state = deployments.state(target)
        assert (state.component, state.spec, state.gpus_per_replica, state.unknown) == ("VllmDecodeWorker", 2, 4, None)
        assert deployments.set_replicas([Order(target=target, before=2, replicas=3, version=state.version)]) == [None]
        seen = deployments.wait_until(lambda: deployments.state(target).spec == 3, 10.0)
        assert seen
    finally:
        deployments.close()


def test_v1beta1_is_preferred_where_both_are_served(server: ApiServer, namespace: str) -> None:
    deployments = Deployments(server.api(), [namespace])
    try:
        deployments.start(20.0)
        assert deployments.dgd_version == "v1beta1" and deployments.dgds() == []
    finally:
        deployments.close()


def test_writes_to_one_dgd_are_apart_in_time(server: ApiServer, namespace: str) -> None:
    create(server, namespace, "chat", "v1beta1", {"agg": (1, 1)}, adapters=True)
    deployments = Deployments(server.api(), [namespace], write_spacing_s=30.0)
    try:
        deployments.start(20.0)
        target = Target(namespace=namespace, dgd="chat", role="agg", component="agg")
        version = deployments.state(target).version
        assert deployments.set_replicas([Order(target=target, before=1, replicas=2, version=version)]) == [None]
        assert deployments.wait_until(lambda: deployments.state(target).adapter_spec == 2, 10.0)
        version = deployments.state(target).version
        early = deployments.set_replicas([Order(target=target, before=2, replicas=3, version=version)])
        assert "less than 30 s ago" in str(early[0])
    finally:
        deployments.close()


def test_zero_replicas_are_refused_where_the_workload_has_none(server: ApiServer, namespace: str) -> None:
    create(server, namespace, "chat", "v1beta1", {"agg": (1, 1)}, adapters=True)
    path = f"/apis/nvidia.com/v1beta1/namespaces/{namespace}/dynamographdeployments/chat/status"
    call(server.admin, "PATCH", path, {"status": {"components": {"agg": {"componentKind": "PodClique", "replicas": 1}}}})
    deployments = Deployments(server.api(), [namespace])
    try:
        deployments.start(20.0)
        target = Target(namespace=namespace, dgd="chat", role="agg", component="agg")
        state = deployments.state(target)
        assert state.least_replicas == 1
        refused = deployments.set_replicas([Order(target=target, before=1, replicas=0, version=state.version)])
        assert "a PodClique has 1 replicas at least" in str(refused[0])
        assert deployments.api_calls().get("patch", 0) == 0
    finally:
        deployments.close()
