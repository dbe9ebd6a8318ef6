"""`ray job submit … -- python -m global_planner run` for a fleet in Kubernetes, with nothing in between that is not a process:
a Ray cluster with a job server, a kube-apiserver with the rights that `deploy/` gives, and a stand-in for the operator."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from global_planner.system_clock import REAL_TIME
from tests.jobs.ray_cluster import ROOT, RayHead, ray_head
from tests.jobs.test_ray_job import rounds, until
from tests.kube.leader import FLEET, pools_of
from tests.kube.manifests import ADAPTERS, create
from tests.kube.operator import Operator
from tests.kube.server import ApiServer
from tests.standalone.front_door import FrontDoor
from tests.standalone.process import PROFILE, Planner, config

BUDGET, SMALLER = 16, 14
ROUND_S = 1.0
TOKEN = "a-token-of-the-script"
GPUS = {f"{group}-{role}": gpus for group, roles in FLEET.items() for role, (_, gpus) in roles.items()}
NAMESPACE = "job-on-kubernetes"


class Cluster(threading.Thread):
    """The operator at work, and the GPUs that were taken at each of its looks: by order or by pod, whichever is more."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(daemon=True)
        self._server, self._ended = server, threading.Event()
        self._operator = Operator(server.api(), NAMESPACE, time.time, cold_start_s=1.0, termination_s=0.5)
        self.most = 0
        self.ordered: dict[str, int] = {}
        self.pods: dict[str, int] = {}

    def run(self) -> None:
        while not self._ended.wait(0.25):
            self._operator.reconcile()
            self._look()

    def end(self) -> None:
        self._ended.set()
        self.join(10)

    def _look(self) -> None:
        adapters = self._server.admin.get(ADAPTERS.format(NAMESPACE))["items"]
        pods = self._server.admin.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        self.ordered = {item["metadata"]["name"].replace("-main-", "-"): item["spec"]["replicas"] for item in adapters}
        names = [item["metadata"]["name"].replace("-main-", "-") for item in pods]
        self.pods = {pool: sum(name.startswith(f"{pool}-") for name in names) for pool in GPUS}
        self.most = max(self.most, sum(max(self.ordered[pool], self.pods[pool]) * gpus for pool, gpus in GPUS.items()))


class Script(threading.Thread):
    """Demand as another planner would tell it, by the central scaling contract, again every second."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self._home, self._ended = home, threading.Event()
        self.wants: Mapping[str, Mapping[str, int]] = {}
        self.answers: list[dict[str, Any]] = []

    def run(self) -> None:
        while not self._ended.wait(0.5):
            for group, replicas in self.wants.items():
                try:
                    self.answers.append(ask(self._home, group, replicas))
                except OSError:  # the arbiter's place is being taken by its successor
                    continue

    def end(self) -> None:
        self._ended.set()
        self.join(20)


def ask(home: Path, group: str, replicas: Mapping[str, int], token: str = TOKEN) -> dict[str, Any]:
    port = json.loads((home / "api.json").read_text())["port"]
    body = {
        "caller_namespace": NAMESPACE,
        "graph_deployment_name": f"{group}-main",
        "k8s_namespace": NAMESPACE,
        "target_replicas": [{"sub_component_type": role, "desired_replicas": number} for role, number in replicas.items()],
        "predicted_load": {"requests_per_s": 5.0},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/scale_request",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def topology(folder: Path, kubeconfig: Path, budget: int) -> Path:
    token = folder / "script-token"
    token.write_text(TOKEN)
    raw = {
        "name": "fleet",
        "budget": {"gpus": {"h100": {"max": budget}}},
        "cluster": {
            "kind": "kubernetes",
            "namespace": NAMESPACE,
            "cold_start_s": 2,
            "kubernetes": {
                "access": "kubeconfig",
                "kubeconfig": str(kubeconfig),
                "context": "test",
                "lease_s": 15,
                "write_deadline_s": 3,
                "write_spacing_s": 0.5,
                "drained_by": "pods",
                "operator_managers": ["manager"],
            },
        },
        "arbiter": {"round_interval_s": ROUND_S, "hold_s": 2},
        "api": {"credentials": [{"name": "script", "token_file": str(token), "pools": ["chat-*", "code-*"]}]},
        "planner": {"throughput_adjustment_interval": 4, "load_predictor": "constant"},
        "groups": [
            {
                "name": group,
                "model": group,
                "sla": {"ttft_ms": 6000, "itl_ms": 500},
                "pools": [
                    {
                        "name": f"{group}-{role}",
                        "role": role,
                        "dgd": f"{group}-main",
                        "component": role,
                        "gpu_type": "h100",
                        "gpus_per_replica": gpus,
                        "min_replicas": minimum,
                        "profile": str(PROFILE),
                        "planned": "outside",
                    }
                    for role, (minimum, gpus) in roles.items()
                ],
            }
            for group, roles in FLEET.items()
        ],
    }
    path = folder / f"topology-{budget}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path) -> Iterator[Cluster]:
    """Six pools in three DGDs with adapters, and the arbiter's rights as we ship them."""
    server.namespace(NAMESPACE)
    for group, roles in FLEET.items():
        create(server, NAMESPACE, f"{group}-main", "v1beta1", roles, adapters=True)
    shipped = [each for each in yaml.safe_load_all((ROOT / "deploy" / "base" / "rbac.yaml").read_text()) if each]
    bound = {each["roleRef"]["name"] for each in shipped if each["kind"] == "RoleBinding"}
    rules = [rule for each in shipped if each["kind"] == "Role" and each["metadata"]["name"] in bound for rule in each["rules"]]
    server.role(NAMESPACE, "planner", rules)
    server.kubeconfig(tmp_path / "kubeconfig", "planner")
    working = Cluster(server)
    working.start()
    yield working
    working.end()


@pytest.fixture
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="a minute long: HYPOTHESIS_PROFILE=nightly")
def test_a_fleet_of_six_pools_is_run_as_a_job_and_changed_as_one(
    server: ApiServer, cluster: Cluster, head: RayHead, tmp_path: Path
) -> None:
    kubeconfig, home = tmp_path / "kubeconfig", head.folder / "home" / "fleet"
    until(lambda: cluster.pods == dict.fromkeys(GPUS, 1), 20, "the operator has made the minima")
    first = head.submit("--topology", str(topology(tmp_path, kubeconfig, BUDGET)))
    assert re.search(r"arbiter \d+ decides since round \d+", first), first
    assert "code-decode: has 1, granted 1" in first

    # The job has ended. Demand by HTTP moves GPUs to one group, and then to the other.
    script = Script(home)
    script.wants = {"chat": {"prefill": 3, "decode": 3}, "code": {"prefill": 1, "decode": 1}}
    script.start()
    try:
        stands(cluster, {"chat-prefill": {3}, "chat-decode": {3}, "code-prefill": {1}, "code-decode": {1}})
        script.wants = {"chat": {"prefill": 1, "decode": 1}, "code": {"prefill": 3, "decode": 2}}
        # Nobody is lowered further than 1.1 times the load allows, unless others need the GPUs: a second replica may stay.
        stands(cluster, {"chat-prefill": {1, 2}, "chat-decode": {1, 2}, "code-prefill": {3}, "code-decode": {2}})
        assert any(answer["status"] == "success" for answer in script.answers), script.answers[-3:]
        refused = ask(home, "docs", {"prefill": 2})
        assert refused["status"] == "rejected" and "may not propose for pool docs-prefill" in refused["message"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(home, "chat", {"prefill": 2}, token="guessed")

        # A planner in a process of its own finds the arbiter's actor through Ray, for the group that nobody asked for yet.
        door = FrontDoor(namespace=f"{NAMESPACE}-docs-main", speed=1.0, rps=3.0)
        given = config(door.url, environment="global-planner", namespace=f"{NAMESPACE}-docs-main", mode="disagg")
        given["throughput_adjustment_interval"] = 4
        environment = {**{key: value for key, value in head.environment.items() if key.startswith("RAY_")}}
        environment |= {"RAY_ADDRESS": f"127.0.0.1:{head.port}", **REAL_TIME.clock.environment()}
        names = ("--pool", "prefill=docs-prefill", "--pool", "decode=docs-decode")
        with Planner(given, "--dgd", "docs-main", "--arbiter", "ray", *names, environment=environment) as planner:
            told = planner.until("decision", within_s=60, pool="docs-decode", outcome="proposal")
            while told["wanted"] < 2 or told["ready"] is None:
                told = planner.until("decision", within_s=60, pool="docs-decode", outcome="proposal")
            until(lambda: cluster.ordered["docs-decode"] >= 2, 30, "what the planner has asked for through Ray")
            assert planner.stop() == 0
        door.close()

        second = head.submit("--topology", str(topology(tmp_path, kubeconfig, SMALLER)))
        assert re.search(r"arbiter \d+ took over from \d+: round \d+ came", second), second
        script.wants = {"chat": {"prefill": 1, "decode": 1}, "code": {"prefill": 1, "decode": 1}}
        stands(cluster, {"chat-prefill": {1, 2}, "chat-decode": {1, 2}, "code-prefill": {1, 2}, "code-decode": {1, 2}})
    finally:
        script.end()
        print((home / "arbiter.log").read_text()[-1500:])

    found = rounds(home)
    assert [done.inputs.round_no for done in found] == list(range(1, len(found) + 1))
    assert found[-1].inputs.budget.max_gpus == {"h100": SMALLER}
    gaps_s = [later.inputs.at_s - earlier.inputs.at_s for earlier, later in pairwise(found)]
    assert max(gaps_s) < 10.0, "the second took its turn between two rounds of the first"
    assert max(done.charged_gpus["h100"] for done in found) <= BUDGET
    assert cluster.most <= BUDGET, "at no look of the operator's more was taken than the budget has"
    lease = server.admin.get(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/fleet-planner")
    assert lease["spec"]["leaseTransitions"] >= 1
    events = server.admin.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
    assert {"ScaledUp", "ScaledDown"} <= {item["reason"] for item in events}
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in home.glob("*.log"))


def stands(cluster: Cluster, wanted: Mapping[str, set[int]]) -> None:
    """Ordered so, and as many pods as that."""

    def there() -> bool:
        return all(cluster.ordered[pool] == cluster.pods[pool] and cluster.pods[pool] in few for pool, few in wanted.items())

    try:
        until(there, 60, f"{wanted}")
    except AssertionError as error:
        raise AssertionError(f"{error}; ordered {cluster.ordered}, pods {cluster.pods}") from error


assert len(pools_of(NAMESPACE)) == len(GPUS) == 6
