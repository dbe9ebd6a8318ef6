"""`global-planner init --from-cluster` on a real API server: what runs comes back as a topology, what compose wrote as the same
pools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from global_planner.__main__ import main
from global_planner.compile import pool_specs
from global_planner.config import Topology
from global_planner.topology_file import load_topology
from tests.compose.test_compose import FRONTS, documents, split_topology
from tests.kube.manifests import DGDS, create, dgd
from tests.kube.server import ApiServer

PROFILE = Path(__file__).resolve().parents[2] / "examples" / "two-models" / "profile"
READ_ONLY = [
    {
        "apiGroups": ["nvidia.com"],
        "resources": ["dynamographdeployments", "dynamographdeploymentscalingadapters"],
        "verbs": ["list"],
    }
]


def init(server: ApiServer, folder: Path, namespace: str) -> tuple[Topology, Result]:
    """As somebody who may list, and nothing else."""
    server.role(namespace, "person", READ_ONLY)
    out = folder / "found" / "topology.yaml"
    out.parent.mkdir()
    shutil.copytree(PROFILE, out.parent / "profile")
    kubeconfig = server.kubeconfig(folder / "kubeconfig", "person")
    arguments = ["init", "--from-cluster", "-o", str(out), "--namespace", namespace, "--kubeconfig", str(kubeconfig)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return load_topology(out), result


def identity(topology: Topology) -> list[tuple[Any, ...]]:
    """What makes a pool the same one."""
    return sorted(
        (
            *(pool.name, pool.role, pool.dgd_name, pool.component, pool.gpu_type, pool.gpus_per_replica),
            *(pool.min_replicas, pool.max_replicas, pool.isl_max_tokens, group.name, group.model),
        )
        for group, pool in topology.placed_pools()
    )


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
@pytest.mark.parametrize("front", sorted(FRONTS))
def test_what_compose_wrote_comes_back(server: ApiServer, namespace: str, tmp_path: Path, version: str, front: str) -> None:
    out = tmp_path / "out"
    arguments = ["compose", "--topology", str(split_topology(tmp_path)), "--out", str(out), "--api-version", version]
    result = CliRunner().invoke(main, [*arguments, "--namespace", namespace, *FRONTS[front]])
    assert result.exit_code == 0, result.output
    manifests = documents(out)
    for manifest in manifests:
        if manifest["apiVersion"].startswith("nvidia.com"):
            plural = f"{manifest['kind'].lower()}s"
            server.create(f"/apis/{manifest['apiVersion']}/namespaces/{namespace}/{plural}", manifest)
    text = next(each["data"]["topology.yaml"] for each in manifests if each["metadata"]["name"] == "global-planner-topology")
    composed = Topology.model_validate(yaml.safe_load(text))

    found, told = init(server, tmp_path, namespace)
    assert identity(found) == identity(composed)
    assert {pool.namespace for pool in pool_specs(found)} == {namespace}
    assert "6 pools in 6 DGDs, GPUs charged: 8 h100" in told.output
    # Nothing would happen before a person says so.
    assert found.arbiter.mode == "observe" and found.budget.gpus["h100"].max == 8


def test_what_people_wrote_is_read_and_what_cannot_be_is_said(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    create(server, namespace, "old", "v1alpha1", {"prefill": (2, 4), "decode": (1, 8)}, adapters=True)
    create(server, namespace, "new", "v1beta1", {"agg": (3, 2)}, adapters=False)
    claimed = dgd("claimed", "v1beta1", {"agg": (1, 1)})
    pod = claimed["spec"]["components"][1]["podTemplate"]["spec"]
    pod["resourceClaims"] = [{"name": "gpus"}]
    pod["containers"][0]["resources"] = {"claims": [{"name": "gpus"}]}
    server.create(DGDS.format("v1beta1", namespace), claimed)

    found, told = init(server, tmp_path, namespace)
    pools = {(pool.name, pool.role, pool.component, pool.gpus_per_replica) for _, pool in found.placed_pools()}
    assert pools == {
        ("new-agg", "agg", "agg", 2),
        ("old-prefill", "prefill", "VllmPrefillWorker", 4),
        ("old-decode", "decode", "VllmDecodeWorker", 8),
    }
    assert found.budget.gpus["gpu"].max == 2 * 4 + 8 + 3 * 2
    assert "could not be read" in told.output and "claimed" in told.output
    text = (tmp_path / "found" / "topology.yaml").read_text()
    assert "# Could not be read, and is not planned: agg of DGD" in text
    assert "new-agg: it has no scaling adapter" in text and "old-prefill: it has no scaling adapter" not in text


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "topology.yaml").write_text("mine")
    result = CliRunner().invoke(main, ["init", "--from-cluster", "-o", str(tmp_path / "topology.yaml")])
    assert (result.exit_code, (tmp_path / "topology.yaml").read_text()) == (2, "mine")


def test_no_cluster_is_told(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config"}))
    result = CliRunner().invoke(main, ["init", "--from-cluster", "--kubeconfig", str(tmp_path / "kubeconfig")])
    assert result.exit_code == 1 and "no way to the cluster" in result.output
