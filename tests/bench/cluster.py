"""Rounds on a real API server with 500 DGDs: how long they take, which calls they make, how much memory the planner has.

    python -m tests.bench.cluster [--dgds 500] [--rounds 60] [--json FILE]

Each DGD has a prefill and a decode pool with adapters and a pod each. The planner is a process of its own, with a journal on
disk; every tenth round five pools want another replica, the others find nothing to do. `round_p50_ms`, `round_p99_ms`: a whole
round, renewal of the lease, observation, arbitration, orders and journal included. `api_calls_per_round`: of the rounds that
found nothing to do (nor to take out of the ledger after one that did). `rss_mb`: of the planner's process at its end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np

from global_planner.journal import Journal
from pool_planner.connectors.kubernetes_api import KubernetesApi, connect
from tests.kube.leader import Clock, Leader, pools_of
from tests.kube.manifests import ADAPTERS, DGDS, adapter, dgd
from tests.kube.server import ApiServer, binaries, call

NAMESPACE = "fleet"
WORKERS = {"prefill": (1, 1), "decode": (1, 2)}
WARM = 5
EVERY = 10


def fleet(dgds: int) -> dict[str, Mapping[str, tuple[int, int]]]:
    return {f"g{number:03d}": WORKERS for number in range(dgds)}


# ---- the planner's process -------------------------------------------------------------------------------------------


async def plan(api: KubernetesApi, folder: Path, dgds: int, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    clock = Clock()
    started = time.perf_counter()
    leader = Leader(api, NAMESPACE, clock, pools=pools_of(NAMESPACE, fleet(dgds)), budget=10_000_000)
    tell(f"opened in {time.perf_counter() - started:.1f} s")
    leader.journal = Journal.open(folder, at_s=clock.now_s, policies=leader.config.policies)
    leader.wants.wanted = {pool.name: 1 for pool in leader.pools}
    took_ms, idle_calls, busy_ms, decide_ms, acted = [], [], [], [], False
    gc.collect()
    gc.freeze()
    gc.disable()  # as the running arbiter does: cycles are looked for between rounds
    for number in range(WARM + rounds):
        if number % EVERY == EVERY - 1:
            for pool in leader.pools[number // EVERY * 5 : number // EVERY * 5 + 5]:
                leader.wants.wanted[pool.name] += 1
        before, begun = sum(api.calls.values()), time.perf_counter()
        done = await leader.step()
        ended = time.perf_counter()
        assert done is not None, leader.standings[-1]
        unread = [item.pool for item in done.inputs.holdings if item.unknown is not None]
        assert not unread, unread[:3]
        leader.rounds.clear()
        clock.now_s += 10.0
        gc.collect()
        if number >= WARM:
            took_ms.append((ended - begun) * 1000.0)
            decide_ms.append(done.decide_ms)
            if done.outcomes:
                busy_ms.append(took_ms[-1])
            elif not acted:
                idle_calls.append(sum(api.calls.values()) - before)
            acted = bool(done.outcomes)
            if number % EVERY == 0:
                tell(f"round {number - WARM}: {took_ms[-1]:.0f} ms")
    leader.close()
    return {
        "round_p50_ms": float(np.percentile(took_ms, 50)),
        "round_p99_ms": float(np.percentile(took_ms, 99)),
        "api_calls_per_round": float(np.mean(idle_calls)),
        "rss_mb": resident_mb(),
        "decide_p50_ms": float(np.percentile(decide_ms, 50)),
        "busy_p50_ms": float(np.percentile(busy_ms, 50)) if busy_ms else None,
        "busy_rounds": len(busy_ms),
    }


def resident_mb() -> float:
    """Memory of this process, MiB."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024.0


# ---- the fleet -------------------------------------------------------------------------------------------------------


def populate(server: ApiServer, dgds: int) -> None:
    server.namespace(NAMESPACE)
    apis = [server.api() for _ in range(4)]
    done = 0

    def one(number: int) -> None:
        api, name = apis[number % len(apis)], f"g{number:03d}-main"
        call(api, "POST", DGDS.format("v1beta1", NAMESPACE), dgd(name, "v1beta1", WORKERS), manager="kubectl-create")
        for role in WORKERS:
            call(api, "POST", ADAPTERS.format(NAMESPACE), adapter(name, role, 1), manager="manager")
            _pod(api, name, role)

    with ThreadPoolExecutor(len(apis)) as threads:
        for _ in threads.map(one, range(dgds)):
            done += 1
            if done % 50 == 0:
                click.echo(f"  {done} of {dgds} DGDs made", err=True)


def _pod(api: KubernetesApi, name: str, role: str) -> None:
    from pool_planner.connectors.dgd_pods import COMPONENT_LABEL, DGD_LABEL, GENERATION_LABEL

    pod = f"{name}-{role}-1"
    labels = {DGD_LABEL: name, COMPONENT_LABEL: role, GENERATION_LABEL: "one"}
    port = {"name": "http", "containerPort": 8000}
    spec = {"nodeName": "node", "containers": [{"name": "main", "image": "engine", "ports": [port]}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": labels}, "spec": spec}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    call(api, "POST", path, body)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}
    call(api, "PATCH", f"{path}/{pod}/status", {"status": {"phase": "Running", "conditions": [ready], "podIP": "10.0.0.1"}})


@click.command(help=__doc__)
@click.option("--dgds", default=500, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=60, show_default=True, type=click.IntRange(10))
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the four figures there.")
@click.option("--planner", type=click.Path(path_type=Path), hidden=True, help="Be the planner's process, with this kubeconfig.")
def main(dgds: int, rounds: int, path: Path | None, planner: Path | None) -> None:
    if planner is not None:
        api = connect(access="kubeconfig", kubeconfig=str(planner))
        found = asyncio.run(
            plan(api, planner.with_name("journal"), dgds, rounds, lambda text: click.echo(f"  {text}", err=True))
        )
        click.echo(json.dumps(found))
        return
    apiserver, etcd = binaries()
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as folder:
        server = ApiServer(folder=Path(folder), apiserver=apiserver, etcd=etcd)
        try:
            click.echo("starting etcd and kube-apiserver", err=True)
            server.start()
            populate(server, dgds)
            kubeconfig = server.kubeconfig(Path(folder) / "kubeconfig", "admin")
            command = [sys.executable, "-m", "tests.bench.cluster", "--planner", str(kubeconfig)]
            command += ["--dgds", str(dgds), "--rounds", str(rounds)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            server.stop()
    found = json.loads(answer.stdout)
    click.echo(f"{dgds} DGDs, {2 * dgds} pools, {rounds} rounds, {found['busy_rounds']} of them with orders")
    for key, unit in (("round_p50_ms", "ms"), ("round_p99_ms", "ms"), ("api_calls_per_round", "calls"), ("rss_mb", "MiB")):
        click.echo(f"  {key:<20} {found[key]:9.1f} {unit}")
    click.echo(f"  {'of it deciding':<20} {found['decide_p50_ms']:9.1f} ms (p50)")
    if found["busy_p50_ms"] is not None:
        click.echo(f"  {'rounds with orders':<20} {found['busy_p50_ms']:9.1f} ms (p50)")
    if path is not None:
        kept = {key: found[key] for key in ("round_p50_ms", "round_p99_ms", "api_calls_per_round", "rss_mb")}
        path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
