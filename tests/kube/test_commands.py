"""Operators' commands for a deployment in a cluster: given with its topology file alone, kept in the API server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from global_planner.__main__ import main
from global_planner.kubernetes_orders import KubernetesOrders
from global_planner.kubernetes_world import open_world, orders_of
from global_planner.system_clock import REAL_TIME
from global_planner.topology_file import load_topology
from pool_planner.types import ClusterUnavailable
from tests.kube.leader import PLANNER_RULES
from tests.kube.server import ApiServer
from tests.topology.refusals import EXAMPLE, RAW, changed, put


@pytest.fixture
def topology(server: ApiServer, namespace: str, tmp_path: Path) -> Path:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", "admin")
    settings = {"access": "kubeconfig", "kubeconfig": str(kubeconfig), "context": "test"}
    raw = changed(put("cluster", {"kind": "kubernetes", "namespace": namespace, "kubernetes": settings}))
    for group in raw["groups"]:
        for pool in group["pools"]:
            pool["profile"] = str(EXAMPLE.parent / pool["profile"])
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(raw))
    return path


def run(*words: str, topology: Path) -> str:
    result = CliRunner().invoke(main, [*words, "--folder", str(topology)])
    assert result.exit_code == 0, result.output
    return result.output


def test_orders_are_given_and_taken_back(topology: Path, server: ApiServer) -> None:
    assert "chat-decode" in run("adopt", "chat-decode", "--by", "ann", topology=topology)
    run("freeze", "--reason", "rewiring", topology=topology)
    run("override", "pin", "chat-decode", "2", "--for", "2h", topology=topology)
    read = load_topology(topology)
    controls = orders_of(read, server.api()).read()
    assert controls.freeze is not None and controls.freeze.reason == "rewiring"
    assert [(item.pool, item.kind, item.replicas) for item in controls.overrides] == [("chat-decode", "pin", 2)]
    assert [(item.pool, item.whose, item.by) for item in controls.custody] == [("chat-decode", "ours", "ann")]

    run("unfreeze", topology=topology)
    run("override", "clear", "chat-decode", topology=topology)
    run("release", "--all", topology=topology)
    controls = orders_of(read, server.api()).read()
    assert controls.freeze is None and controls.overrides == ()
    assert {item.pool for item in controls.custody} == {pool.name for _, pool in read.placed_pools()}
    assert {item.whose for item in controls.custody} == {"theirs"}


def test_who_has_the_topology_alone_can_stop_everything(topology: Path, server: ApiServer) -> None:
    """Profiles say what pools can do; whoever only wants them to be left alone need not have them."""
    raw = json.loads(topology.read_text())
    for group in raw["groups"]:
        for pool in group["pools"]:
            pool["profile"] = "nowhere"
    topology.write_text(json.dumps(raw))
    run("freeze", "--reason", "stop", topology=topology)
    run("release", "--all", topology=topology)
    orders = KubernetesOrders(server.api(), namespace=raw["cluster"]["namespace"], name=f"{raw['name']}-orders").read()
    assert orders.freeze is not None and {item.whose for item in orders.custody} == {"theirs"}


def test_which_pools_must_be_said(topology: Path) -> None:
    for words, told in ((["release"], "say which pools, or --all"), (["adopt", "nobody"], "no pool 'nobody' (has: ")):
        result = CliRunner().invoke(main, [*words, "--folder", str(topology)])
        assert result.exit_code == 2 and told in result.output


def test_an_order_that_cannot_be_read_freezes_and_says_where(topology: Path, server: ApiServer, namespace: str) -> None:
    run("freeze", topology=topology)
    path = f"/api/v1/namespaces/{namespace}/configmaps/{RAW['name']}-orders"
    from tests.kube.server import patched

    patched(server.admin, path, {"data": {"freeze.json": "{"}})
    with pytest.raises(ClusterUnavailable, match=r"ConfigMap two-models-orders in .*: freeze.json"):
        orders_of(load_topology(topology), server.api()).read()


async def test_the_world_of_a_topology_opens_decides_and_closes(topology: Path, server: ApiServer, namespace: str) -> None:
    from global_planner.compile import pool_specs

    read = load_topology(topology)
    async with open_world(read, pool_specs(read), REAL_TIME.clock) as world:
        assert await world.ours() and world.standing.kind == "leader"
        holdings = await world.cluster.observe()
        assert {item.pool for item in holdings} == {pool.name for _, pool in read.placed_pools()}
        assert all(item.unknown is not None and "does not exist" in item.unknown for item in holdings)
        async with open_world(read, pool_specs(read), REAL_TIME.clock) as other:
            assert not await other.ours() and other.standing.kind == "standby"
    async with open_world(read, pool_specs(read), REAL_TIME.clock) as after:
        assert await after.ours(), "who closes hands the lease back"


async def test_a_user_without_rights_is_told_which_are_missing(topology: Path, server: ApiServer, namespace: str) -> None:
    from global_planner.compile import pool_specs

    server.kubeconfig(topology.parent / "kubeconfig", "person")
    read = load_topology(topology)
    with pytest.raises(ClusterUnavailable, match="'list' on dynamographdeployments"):
        async with open_world(read, pool_specs(read), REAL_TIME.clock):
            pass
    server.role(namespace, "person", [rule for rule in PLANNER_RULES if "leases" not in rule["resources"]])
    async with open_world(read, pool_specs(read), REAL_TIME.clock) as world:
        assert not await world.ours()
        assert "'get' on leases.coordination.k8s.io" in world.standing.note
