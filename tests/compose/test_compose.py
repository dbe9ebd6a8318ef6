"""`global-planner compose`: what is written for a deployment, looked at as whoever reads it in the cluster does."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from global_planner.__main__ import main
from global_planner.compile import pool_specs
from global_planner.topology_file import load_profiles, parse_topology
from pool_planner.compatibility import read_config
from pool_planner.performance.profile import load_profile
from pool_planner.standalone import Standalone, setup_of
from router.config import validate
from router.foreign import translate

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "examples" / "two-models" / "topology.yaml"
FRONTS = {
    "router": (),
    "global-router": ("--front", "global-router", "--prometheus", "http://prometheus:9090"),
}


def composed(topology: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["compose", "--topology", str(topology), "--out", str(out), *arguments])


def documents(out: Path) -> list[dict[str, Any]]:
    listed = yaml.safe_load((out / "kustomization.yaml").read_text())["resources"]
    return [each for name in listed for each in yaml.safe_load_all((out / name).read_text())]


def split_topology(tmp_path: Path) -> Path:
    """The example with a DGD for each pool, which is what Dynamo's GlobalRouter needs."""
    raw = yaml.safe_load(TOPOLOGY.read_text())
    for group in raw["groups"]:
        for pool in group["pools"]:
            pool["dgd"] = pool["name"]
            pool["profile"] = str(TOPOLOGY.parent / pool["profile"])
    path = tmp_path / "split.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module", params=["v1beta1", "v1alpha1"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=sorted(FRONTS))
def front(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, version: str, front: str) -> Path:
    """Written once for each way: tests only look at it."""
    tmp_path = tmp_path_factory.mktemp("compose")
    folder = tmp_path / "out"
    result = composed(split_topology(tmp_path), folder, "--api-version", version, *FRONTS[front])
    assert result.exit_code == 0, result.output
    return folder


def workers(manifest: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """name -> (kind, replicas, GPUs) of a DGD's engines, in either version."""
    found: dict[str, tuple[str, int, int]] = {}
    spec = manifest["spec"]
    for name, service in spec.get("services", {}).items():
        limits = service.get("resources", {}).get("limits", {})
        if "gpu" in limits:
            found[name] = (service["subComponentType"], service["replicas"], int(limits["gpu"]))
    for component in spec.get("components", ()):
        container = component["podTemplate"]["spec"]["containers"][0]
        gpus = container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
        if gpus is not None:
            found[component["name"]] = (component["type"], component["replicas"], int(gpus))
    return found


def test_every_pool_has_its_dgd_adapter_planner_and_profile(out: Path, version: str) -> None:
    found = documents(out)
    dgds = {each["metadata"]["name"]: each for each in found if each["kind"] == "DynamoGraphDeployment"}
    assert set(dgds) == {
        "two-models-control",
        *(f"{group}-{pool}" for group in ("chat", "code") for pool in ("prefill-short", "prefill-long", "decode")),
    }
    assert {each["apiVersion"] for each in dgds.values()} == {f"nvidia.com/{version}"}
    assert workers(dgds["chat-decode"]) == {"VllmDecodeWorker": ("decode", 2, 1)}
    assert workers(dgds["two-models-control"]) == {}
    adapters = [each for each in found if each["kind"] == "DynamoGraphDeploymentScalingAdapter"]
    assert {(each["metadata"]["name"], each["spec"]["replicas"]) for each in adapters} >= {
        ("chat-decode-vllmdecodeworker", 2),
        ("code-prefill-long-vllmprefillworker", 1),
    }
    assert len(adapters) == 6


def test_what_planners_and_arbiter_mount_is_what_they_can_read(out: Path, tmp_path: Path, front: str) -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in documents(out) if each["kind"] == "ConfigMap"}
    profiles = {name: data for name, data in maps.items() if name.startswith("planner-profile-data-")}
    assert len(profiles) == 1  # all pools of the example have the same curves
    ((name, files),) = profiles.items()
    mounted = tmp_path / name.removeprefix("planner-profile-data-")
    mounted.mkdir()
    for file, text in files.items():
        (mounted / file).write_text(text)

    topology_text = maps["global-planner-topology"]["topology.yaml"].replace("/etc/profiles", str(tmp_path))
    topology = parse_topology(topology_text, source="composed", folder=tmp_path)
    assert set(load_profiles(topology)) == {pool.name for pool in pool_specs(topology)}
    assert {pool.planned for _, pool in topology.placed_pools()} == {"outside"}
    assert topology.cluster.kubernetes.drained_by == ("router" if front == "router" else "pods")

    config = read_config(json.loads(maps["planner-config-chat-decode"]["planner_config.json"]), origin="composed").config
    setup = setup_of(config, load_profile(mounted), Standalone(dgd="chat-decode", names={"decode": "chat-decode"}))
    ((pool),) = setup.pools
    assert (pool.name, pool.role, pool.gpus_per_replica, pool.min_replicas) == ("chat-decode", "decode", 1, 2)
    assert (config.environment, config.namespace, setup.max_gpus) == ("global-planner", "demo-chat-decode", None)


def test_credentials_speak_for_their_own_pools_only(out: Path) -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in documents(out) if each["kind"] == "ConfigMap"}
    api = yaml.safe_load(maps["global-planner-topology"]["topology.yaml"])["api"]
    pools = {each["name"]: each["pools"] for each in api["credentials"] if each["pools"]}
    assert pools == {name: [name] for name in pools} and len(pools) == 6
    (secret,) = [each for each in documents(out) if each["kind"] == "Secret"]
    tokens = secret["stringData"]
    assert set(tokens) >= set(pools) and len(set(tokens.values())) == len(tokens)
    assert min(map(len, tokens.values())) >= 40
    assert stat.S_IMODE((out / "tokens.yaml").stat().st_mode) == 0o600


def test_routers_can_read_their_configuration(out: Path, front: str) -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in documents(out) if each["kind"] == "ConfigMap"}
    if front == "router":
        config = validate(json.loads(maps["global-router-config"]["router.json"]))
        assert [model.model for model in config.models] == ["demo/chat", "demo/code"]
        assert config.planner_url == "http://global-planner.demo.svc:8080"
        return
    raw = json.loads(maps["global-router-config-chat"]["global_router_config.json"])
    assert raw["prefill_pool_dynamo_namespaces"] == ["demo-chat-prefill-short", "demo-chat-prefill-long"]
    cells = raw["prefill_pool_selection_strategy"]["prefill_pool_mapping"]
    assert (cells[0][0], cells[-1][0]) == (0, 1)  # short prompts to the first pool, long ones to the second
    translate(raw, model="demo/chat")


def test_our_containers_are_locked_down(out: Path) -> None:
    ours = [container for container, _ in containers(documents(out)) if container["image"] == "global-planner:latest"]
    assert len(ours) >= 7  # the arbiter, and a planner for each of the six pools
    for container, pod in containers(documents(out)):
        if container["image"] == "global-planner:latest":
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert pod["securityContext"]["runAsNonRoot"] is True


def containers(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    pairs = []
    for manifest in found:
        if manifest["kind"] != "DynamoGraphDeployment":
            continue
        for component in manifest["spec"].get("components", ()):
            pod = component["podTemplate"]["spec"]
            pairs += [(container, pod) for container in pod["containers"]]
        for service in manifest["spec"].get("services", {}).values():
            pairs.append((service["extraPodSpec"]["mainContainer"], service["extraPodSpec"]))
    return pairs


def test_by_default_the_arbiter_may_write_only_scale(out: Path) -> None:
    bound = {each["roleRef"]["name"] for each in documents(out) if each["kind"] == "RoleBinding"}
    roles = [each for each in documents(out) if each["kind"] == "Role" and each["metadata"]["name"] in bound]
    writes = {
        (resource, verb)
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in ("get", "list", "watch")
    }
    assert {resource for resource, _ in writes} == {
        "dynamographdeploymentscalingadapters/scale",
        "leases",
        "events",
    }
    assert not [each for each in documents(out) if each["kind"] == "ClusterRole"]


def test_the_arbiter_may_what_the_one_we_ship_may(out: Path) -> None:
    """The rights of `deploy/base` are those that the tests of a real API server are run with."""
    composed_rights = rights(documents(out))
    shipped = rights(list(yaml.safe_load_all((ROOT / "deploy" / "base" / "rbac.yaml").read_text())))
    assert composed_rights == shipped


def rights(found: list[dict[str, Any]]) -> dict[str, set[tuple[str, str, str]]]:
    """role -> (group, resource, verb)."""
    return {
        each["metadata"]["name"]: {
            (group, resource, verb)
            for rule in each["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for each in found
        if each["kind"] == "Role"
    }


def test_nobody_but_those_who_need_it_reaches_our_pods(out: Path, front: str) -> None:
    found = documents(out)
    policies = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "NetworkPolicy"}
    labels = {
        (pod["metadata"]["labels"] or {}).get("app.kubernetes.io/name")
        for manifest in found
        if manifest["kind"] == "DynamoGraphDeployment"
        for pod in (
            *(each["podTemplate"] for each in manifest["spec"].get("components", ())),
            *({"metadata": each["extraPodMetadata"]} for each in manifest["spec"].get("services", {}).values()),
        )
    }
    # Each policy is of pods that there are, and each of our pods has one.
    chosen = {spec["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for spec in policies.values()}
    assert chosen == labels - {None} == set(policies)
    open_ports = {name: [rule["ports"][0]["port"] for rule in spec["ingress"]] for name, spec in policies.items()}
    assert open_ports["global-planner"] == [8080] and open_ports["pool-planner"] == [9085]
    if front == "router":
        assert open_ports["global-router"] == [8000, 8001]
        admin = policies["global-router"]["ingress"][1]
        assert {"part-of"} <= {
            key.partition("/")[2] for each in admin["from"] for key in each.get("podSelector", {}).get("matchLabels", {})
        }
    for name, spec in policies.items():
        for rule in spec["ingress"]:
            assert rule.get("from") or (name, rule["ports"][0]["port"]) == ("global-router", 8000)


def test_nodes_are_seen_only_where_that_is_wanted(tmp_path: Path) -> None:
    assert composed(TOPOLOGY, tmp_path / "out", "--see-nodes", "--gpu-label", "example.com/gpu").exit_code == 0
    maps = {each["metadata"]["name"]: each["data"] for each in documents(tmp_path / "out") if each["kind"] == "ConfigMap"}
    settled = yaml.safe_load(maps["global-planner-topology"]["topology.yaml"])
    assert settled["cluster"]["kubernetes"]["gpu_label"] == "example.com/gpu"
    (role,) = [each for each in documents(tmp_path / "out") if each["kind"] == "ClusterRole"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list", "watch"]}]
    (binding,) = [each for each in documents(tmp_path / "out") if each["kind"] == "ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "global-planner-demo"


def test_again_keeps_the_tokens_and_drops_what_is_no_longer_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert composed(TOPOLOGY, folder).exit_code == 0
    before = (folder / "tokens.yaml").read_text()
    (folder / "pool-gone.yaml").write_text("old")
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
    listed["resources"].append("services.yaml")  # of an earlier version of ours
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(listed))
    (folder / "services.yaml").write_text("old")
    assert composed(TOPOLOGY, folder).exit_code == 0
    assert (folder / "tokens.yaml").read_text() == before
    assert not (folder / "pool-gone.yaml").exists() and not (folder / "services.yaml").exists()


def test_a_pair_shares_a_dgd_and_each_brings_the_curves_of_its_role(tmp_path: Path) -> None:
    assert composed(TOPOLOGY, tmp_path / "out").exit_code == 0
    (pair,) = [each for each in documents(tmp_path / "out") if each["metadata"]["name"] == "chat-main"]
    assert set(workers(pair)) == {"VllmPrefillWorker", "VllmDecodeWorker"}
    planner = next(each for each in pair["spec"]["components"] if each["name"] == "Planner")
    sources = next(
        volume["projected"]["sources"] for volume in planner["podTemplate"]["spec"]["volumes"] if volume["name"] == "profile"
    )
    assert [source["configMap"]["items"][0]["key"] for source in sources] == ["prefill_raw_data.json", "decode_raw_data.json"]


REFUSED = {
    "two pools in one DGD": (("--front", "global-router", "--prometheus", "http://p"), "give each pool a dgd of its own"),
    "mock engines behind our router": (("--backend", "mocker"), "not HTTP servers"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = composed(TOPOLOGY, tmp_path / "out", *arguments)
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_dynamos_router_needs_a_prometheus(tmp_path: Path) -> None:
    result = composed(split_topology(tmp_path), tmp_path / "out", "--front", "global-router")
    assert (result.exit_code, "--prometheus" in result.output) == (2, True), result.output


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = composed(TOPOLOGY, blocked / "out")
    assert result.exit_code == 1 and "cannot be written" in result.output
    assert os.listdir(tmp_path) == ["file"]
