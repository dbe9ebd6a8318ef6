"""What deploy/ would put into a cluster: rendered, and looked at for what must hold there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from global_planner.compile import pool_specs
from global_planner.topology_file import load_topology
from tests.deploy.render import render
from tests.deploy.schemas import SPECS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OVERLAYS = ("plain", "kuberay")
COMPONENTS = DEPLOY / "components"


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(DEPLOY / "overlays" / request.param)


def pods(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, spec) of every pod that would run."""
    for each in found:
        name, spec = each["metadata"]["name"], each.get("spec", {})
        for template in (spec.get("template"), spec.get("submitterPodTemplate"), spec.get("headGroupSpec", {}).get("template")):
            if template is not None:
                yield name, template["spec"]


def key(each: dict[str, Any]) -> tuple[str, str]:
    return each["kind"], each["metadata"]["name"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_renderer_does_what_kustomize_does(overlay: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        pytest.skip(f"this kubectl's kustomize is too old: {done.stderr[:200]}")
    theirs = {key(each): each for each in yaml.safe_load_all(done.stdout)}
    ours = {key(each): each for each in render(DEPLOY / "overlays" / overlay)}
    assert ours == theirs


def test_nothing_runs_as_root_or_writes_its_image(manifests: list[dict[str, Any]]) -> None:
    found = list(pods(manifests))
    assert found
    for name, pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name


def test_every_mount_has_its_volume_and_none_is_inside_a_read_only_one(manifests: list[dict[str, Any]]) -> None:
    for name, pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", ())}
            assert {mount["name"] for mount in mounts.values()} <= volumes | {"data"}, name
            for path in mounts:
                # The kubelet cannot make a mount point inside a volume that is read-only.
                assert not [other for other in mounts if path.startswith(f"{other}/") and mounts[other].get("readOnly")], path


def writes(found: list[dict[str, Any]], account: str = "global-planner") -> set[tuple[str, str]]:
    """(resource, verb) that an account may use to change something."""
    bound = {
        each["roleRef"]["name"]
        for each in found
        if each["kind"] == "RoleBinding" and any(subject["name"] == account for subject in each["subjects"])
    }
    return {
        (resource, verb)
        for each in found
        if each["kind"] == "Role" and each["metadata"]["name"] in bound
        for rule in each["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in ("get", "list", "watch")
    }


LEAST = {
    ("dynamographdeploymentscalingadapters/scale", "patch"),
    ("dynamographdeploymentscalingadapters/scale", "update"),
    ("events", "create"),
    ("events", "patch"),
    ("leases", "create"),
    ("leases", "update"),
}


def test_by_default_only_the_adapters_scale_may_be_written(manifests: list[dict[str, Any]]) -> None:
    assert writes(manifests) == LEAST
    assert not [each for each in manifests if each["kind"].startswith("ClusterRole")]


def test_more_is_opt_in() -> None:
    patching = render(DEPLOY / "overlays" / "kuberay", COMPONENTS / "patch-dgds")
    assert writes(patching) == LEAST | {("dynamographdeployments", "patch")}
    naming = render(DEPLOY / "overlays" / "plain", COMPONENTS / "name-victims")
    assert writes(naming) == LEAST | {("pods", "patch")}
    seeing = render(DEPLOY / "overlays" / "plain", COMPONENTS / "see-nodes")
    assert writes(seeing) == LEAST
    (role,) = [each for each in seeing if each["kind"] == "ClusterRole"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list", "watch"]}]
    (binding,) = [each for each in seeing if each["kind"] == "ClusterRoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "global-planner", "namespace": "global-planner"}]


def test_rays_ports_are_closed_to_others_and_tokens_are_asked_for() -> None:
    found = render(DEPLOY / "overlays" / "kuberay")
    (cluster,) = [each for each in found if each["kind"] == "RayCluster"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    ports = {port["containerPort"] for port in cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]}
    (policy,) = [each for each in found if key(each) == ("NetworkPolicy", "global-planner")]
    opened: set[int] = set()
    for rule in policy["spec"]["ingress"]:
        named = [each.get("podSelector", {}).get("matchLabels", {}) for each in rule["from"]]
        own = all(each.get("app.kubernetes.io/name") in ("global-planner", "global-planner-submitter") for each in named)
        if not own:
            opened |= {port["port"] for port in rule["ports"]}
    assert ports > opened == {8080}
    labels = cluster["spec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_head_survives_its_death() -> None:
    """GCS fault tolerance, and a journal that is mounted where the arbiter writes it."""
    found = render(DEPLOY / "overlays" / "kuberay")
    (cluster,) = [each for each in found if each["kind"] == "RayCluster"]
    assert cluster["spec"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis://global-planner-redis:6379"
    assert ("Service", "global-planner-redis") in {key(each) for each in found}
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    home = next(each["value"] for each in container["env"] if each["name"] == "GLOBAL_PLANNER_HOME")
    assert {"name": "journal", "mountPath": home} in container["volumeMounts"]


def test_what_the_api_server_of_the_tests_does_not_know_fits_its_schema() -> None:
    seen = set()
    for overlay in OVERLAYS:
        for each in render(DEPLOY / "overlays" / overlay):
            schema = SPECS.get((each["apiVersion"], each["kind"]))
            if schema is not None:
                jsonschema.validate(each["spec"], schema)
                seen.add((each["apiVersion"], each["kind"]))
    assert seen == set(SPECS)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"entrypoint": "x", "shutdownAfterJobFinish": True}, SPECS["ray.io/v1", "RayJob"])


def test_the_topology_that_is_deployed_is_one() -> None:
    topology = load_topology(DEPLOY / "base" / "topology.yaml")
    assert {pool.dgd for pool in pool_specs(topology)} == {"chat"}
    assert topology.cluster.kind == "kubernetes"


# ---- the image --------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_the_image_runs_as_nobody_from_a_pinned_base() -> None:
    found = instructions()
    bases = [rest for name, rest in found if name == "FROM"]
    assert all(re.match(r"python:3\.\d+-(slim-)?bookworm", base) for base in bases), bases
    assert "-slim-" in bases[-1], bases  # what it is built with stays behind
    users = [rest for name, rest in found if name == "USER"]
    assert users and users[-1].split(":")[0] == "10001"
    assert {name for name, _ in found} <= {"FROM", "WORKDIR", "COPY", "RUN", "LABEL", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert not [rest for name, rest in found if name == "RUN" and re.search(r"curl|wget|sudo|chmod 777", rest)]
    sources = {word for name, rest in found if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]}
    assert all((DEPLOY.parent / source).exists() for source in sources), sources
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert all(f"!{source}" in ignored for source in sources)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    assert hadolint.exists(), "hadolint is in the development group: make setup"
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
