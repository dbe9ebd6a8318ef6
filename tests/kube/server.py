"""A real kube-apiserver on a real etcd, on loopback: started here, ended here by their process ids.

It is v1.20 without controllers, scheduler and kubelet: pods are what a stand-in operator (`operator.py`) makes of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kubernetes_client

from pool_planner.connectors.dgd_write import Request
from pool_planner.connectors.kubernetes_api import KubernetesApi, NotFound
from pool_planner.types import ClusterUnavailable, Conflict
from tests.kube.crds import CRDS

SCRIPT = Path(__file__).parents[1] / "services" / "kube_apiserver.sh"
START_LIMIT_S = 90.0
ADMIN_TOKEN = "test-admin"
PR_SET_PDEATHSIG = 1


def binaries() -> tuple[Path, Path]:
    """kube-apiserver and etcd; skips the test with the reason where they are not (in continuous integration: fails it)."""
    found = subprocess.run(["bash", str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        reason = found.stderr.strip() or "no kube-apiserver"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(found.stdout.strip())
    etcd = folder / "etcd"
    return folder / "kube-apiserver", etcd if etcd.exists() else Path(shutil.which("etcd") or "etcd")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class ApiServer:
    """A running API server. `tokens` are the users that it knows, by name; `admin` may do everything."""

    folder: Path
    apiserver: Path
    etcd: Path
    users: tuple[str, ...] = ("planner", "other-planner", "person", "operator", "hpa", "seer")
    port: int = 0
    _etcd_port: int = 0
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _admin: KubernetesApi | None = None

    def start(self) -> None:
        self._etcd_port, peer = free_port(), free_port()
        tokens = [f'{ADMIN_TOKEN},admin,admin,"system:masters"']
        tokens += [f"token-{name},{name},{name}" for name in self.users]
        (self.folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        key = self.folder / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        url, peer_url = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{peer}"
        self._launch(
            "etcd",
            [
                str(self.etcd),
                *("--data-dir", str(self.folder / "etcd-data"), "--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
                *("--initial-cluster", f"default={peer_url}", "--log-level", "error"),
            ],
        )
        self.port = free_port()
        self.start_apiserver()
        self._install_crds()

    def start_apiserver(self) -> None:
        key = str(self.folder / "service-account.key")
        self._launch(
            "apiserver",
            [
                str(self.apiserver),
                f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
                *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
                *(f"--secure-port={self.port}", "--insecure-port=0", f"--cert-dir={self.folder / 'certs'}"),
                *("--service-account-issuer=https://test", f"--service-account-key-file={key}"),
                *(f"--service-account-signing-key-file={key}", f"--token-auth-file={self.folder / 'tokens.csv'}"),
                *("--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"),
                *("--endpoint-reconciler-type=none", "--min-request-timeout=5", "--watch-cache=true", "--v=0"),
            ],
        )
        self._wait_ready()

    def stop_apiserver(self) -> None:
        """End it as a crash does, without a word to whoever watches; etcd keeps what it had."""
        process = self._processes.pop("apiserver", None)
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        self.stop_apiserver()
        self._end("etcd")

    def api(self, user: str = "admin", port: int | None = None) -> KubernetesApi:
        """The API as a user sees it; through another `port` where a proxy listens."""
        configuration = kubernetes_client.Configuration()
        configuration.host = f"https://127.0.0.1:{port or self.port}"
        configuration.ssl_ca_cert = str(self.folder / "certs" / "apiserver.crt")
        token = ADMIN_TOKEN if user == "admin" else f"token-{user}"
        configuration.api_key = {"authorization": token}
        configuration.api_key_prefix = {"authorization": "Bearer"}
        return KubernetesApi(configuration)

    def kubeconfig(self, path: Path, user: str, url: str | None = None) -> Path:
        """A kubeconfig for a user, with a context of the name `test`; `url`: where a proxy listens."""
        import yaml

        cluster = {
            "server": url or f"https://127.0.0.1:{self.port}",
            "certificate-authority": str(self.folder / "certs" / "apiserver.crt"),
        }
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": "test", "user": {"token": f"token-{user}" if user != "admin" else ADMIN_TOKEN}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        path.chmod(0o600)
        return path

    # ---- objects -----------------------------------------------------------------------------------------------------

    @property
    def admin(self) -> KubernetesApi:
        if self._admin is None:
            self._admin = self.api()
        return self._admin

    def create(self, path: str, body: Any, *, manager: str = "kubectl-create", api: KubernetesApi | None = None) -> Any:
        return call(api or self.admin, "POST", path, body, manager=manager)

    def namespace(self, name: str) -> str:
        self.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    def role(self, namespace: str, user: str, rules: list[dict[str, Any]]) -> None:
        """Let a user do what `rules` say, in a namespace, and nothing else."""
        group = "/apis/rbac.authorization.k8s.io/v1"
        self.create(
            f"{group}/namespaces/{namespace}/roles",
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": user}, "rules": rules},
        )
        self.create(
            f"{group}/namespaces/{namespace}/rolebindings",
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": user},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
                "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            },
        )

    def see_nodes(self, user: str) -> None:
        """Let a user list nodes and the pods of all namespaces, as `deploy/components/see-nodes` does."""
        group, about = "/apis/rbac.authorization.k8s.io/v1", {"metadata": {"name": f"{user}-nodes"}}
        rules = [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list", "watch"]}]
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", **about}
        self.create(f"{group}/clusterroles", {**kind, "kind": "ClusterRole", "rules": rules})
        self.create(
            f"{group}/clusterrolebindings",
            {
                **kind,
                "kind": "ClusterRoleBinding",
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{user}-nodes"},
                "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            },
        )

    # ---- processes ---------------------------------------------------------------------------------------------------

    def _launch(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_the_tests
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_ready(self) -> None:
        ends = time.monotonic() + START_LIMIT_S
        while time.monotonic() < ends:
            process = self._processes["apiserver"]
            if process.poll() is not None:
                break
            try:
                self.api().get("/readyz", deadline_s=1.0)
                return
            except ClusterUnavailable:
                time.sleep(0.1)
        tail = (self.folder / "apiserver.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"kube-apiserver is not ready: {tail}")

    def _install_crds(self) -> None:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for crd in CRDS:
            self.create(path, crd)
        ends = time.monotonic() + 30.0
        for version in ("v1alpha1", "v1beta1"):
            while True:
                try:
                    names = {item["name"] for item in self.admin.get(f"/apis/nvidia.com/{version}")["resources"]}
                    if "dynamographdeployments" in names and "dynamographdeploymentscalingadapters/scale" in names:
                        break
                except NotFound:
                    pass
                if time.monotonic() > ends:
                    raise RuntimeError("the CRDs are not served")
                time.sleep(0.05)


def _die_with_the_tests() -> None:
    """Of a run of the tests that is killed, no server is left behind. Linux only, as kube-apiserver's build is."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def call(
    api: KubernetesApi,
    method: str,
    path: str,
    body: Any,
    *,
    manager: str = "kubectl-edit",
    content_type: str | None = None,
) -> Any:
    """One request; a merge patch unless said otherwise."""
    kind = content_type or ("application/merge-patch+json" if method == "PATCH" else "application/json")
    request = Request(method=method, path=path, content_type=kind, body=body, verb=method.lower(), resource=path, namespace="")
    return api.send(request, manager=manager, deadline_s=20.0)


def patched(api: KubernetesApi, path: str, change: Any, *, manager: str = "kubectl-edit") -> Any:
    """A merge patch that is tried again when somebody else was faster."""
    for _ in range(20):
        try:
            return call(api, "PATCH", path, change, manager=manager)
        except Conflict:
            time.sleep(0.02)
    raise AssertionError(f"{path}: conflict after conflict")
