"""Every manifest that we ship or write, offered to a real API server as a server-side dry run: it is validated, defaulted and
admitted as if it were meant, and nothing is kept."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from global_planner.__main__ import main
from tests.compose.test_compose import FRONTS, documents, split_topology
from tests.deploy.render import render
from tests.deploy.schemas import SPECS
from tests.kube.server import ADMIN_TOKEN, ApiServer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
STUBS = {
    "ray.io": {"rayclusters": "RayCluster", "rayjobs": "RayJob"},
    "monitoring.coreos.com": {"servicemonitors": "ServiceMonitor"},
}


class DryRun:
    """`offer` gives the object as the API server would have stored it."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._context = ssl.create_default_context(cafile=str(server.folder / "certs" / "apiserver.crt"))
        self._plurals: dict[str, dict[str, tuple[str, bool]]] = {}

    def send(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"https://127.0.0.1:{self._server.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=20) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code}: {error.read().decode()[:600]}") from error

    def serves(self, api_version: str, kind: str) -> tuple[str, bool] | None:
        """(path of the group, plural and namespaced) of a kind; None: this server has it not."""
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if api_version not in self._plurals:
            try:
                found = self.send("GET", root)["resources"]
            except AssertionError:
                found = []
            self._plurals[api_version] = {
                each["kind"]: (f"{root}|{each['name']}", each["namespaced"]) for each in found if "/" not in each["name"]
            }
        return self._plurals[api_version].get(kind)

    def offer(self, manifest: dict[str, Any], namespace: str) -> Any:
        """A copy of it, in the test's namespace."""
        served = self.serves(manifest["apiVersion"], manifest["kind"])
        assert served is not None, (manifest["apiVersion"], manifest["kind"])
        (root, plural), namespaced = served[0].split("|"), served[1]
        body = {**manifest, "metadata": {**manifest["metadata"], **({"namespace": namespace} if namespaced else {})}}
        path = f"{root}/namespaces/{namespace}/{plural}" if namespaced else f"{root}/{plural}"
        return self.send("POST", f"{path}?dryRun=All&fieldManager=tests", body)


@pytest.fixture(scope="module")
def dry_run(server: ApiServer) -> Iterator[DryRun]:
    """With stubs of the CRDs that KubeRay and the Prometheus operator bring: anything in `spec`, whose schema is checked
    apart."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for group, kinds in STUBS.items():
        for plural, kind in kinds.items():
            schema = {
                "type": "object",
                "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
            version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
            server.create(
                path,
                {
                    "apiVersion": "apiextensions.k8s.io/v1",
                    "kind": "CustomResourceDefinition",
                    "metadata": {"name": f"{plural}.{group}"},
                    "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
                },
            )
    trying = DryRun(server)

    ends = time.monotonic() + 20
    while any(trying.serves(f"{group}/v1", kind) is None for group, kinds in STUBS.items() for kind in kinds.values()):
        assert time.monotonic() < ends, "the stubs are not served"
        trying._plurals.clear()
        time.sleep(0.1)
    yield trying


@pytest.mark.parametrize("overlay", ["plain", "kuberay"])
def test_what_we_ship(dry_run: DryRun, namespace: str, overlay: str) -> None:
    offered, elsewhere = 0, set()
    for manifest in render(DEPLOY / "overlays" / overlay, *sorted((DEPLOY / "components").iterdir())):
        kind = (manifest["apiVersion"], manifest["kind"])
        if dry_run.serves(*kind) is None:
            elsewhere.add(kind)
            # The same object in the version that this server still has, and its own version against its schema (tests/deploy).
            manifest = {**manifest, "apiVersion": manifest["apiVersion"].replace("policy/v1", "policy/v1beta1")}
        stored = dry_run.offer(manifest, namespace)
        assert stored["metadata"]["uid"]
        offered += 1
    assert offered >= 16 and elsewhere <= {("policy/v1", "PodDisruptionBudget")} <= set(SPECS)


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
@pytest.mark.parametrize("front", sorted(FRONTS))
def test_what_compose_writes(dry_run: DryRun, namespace: str, tmp_path: Path, version: str, front: str) -> None:
    out = tmp_path / "out"
    arguments = ["compose", "--topology", str(split_topology(tmp_path)), "--out", str(out), "--api-version", version]
    assert CliRunner().invoke(main, [*arguments, *FRONTS[front], "--see-nodes"]).exit_code == 0
    offered = [dry_run.offer(manifest, namespace) for manifest in documents(out)]
    dgds = [each for each in offered if each["kind"] == "DynamoGraphDeployment"]
    assert len(dgds) == 7 and {each["apiVersion"] for each in dgds} == {f"nvidia.com/{version}"}


def test_a_manifest_that_is_wrong_is_refused(dry_run: DryRun, namespace: str) -> None:
    """The dry run is one: it refuses what is no manifest."""
    wrong = yaml.safe_load((DEPLOY / "base" / "service.yaml").read_text())
    wrong["spec"]["ports"][0]["port"] = 99999
    with pytest.raises(AssertionError, match="422"):
        dry_run.offer(wrong, namespace)
