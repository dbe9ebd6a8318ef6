"""The virtual cluster as a real process with real (tiny) engines, seen through its API and through the Cluster port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from global_planner.compile import pool_specs
from global_planner.config import Topology
from global_planner.mocker.cluster_client import VirtualCluster
from global_planner.topology_file import load_topology
from global_planner.types import Cancel, Grow, Holding, PoolSpec, Shrink
from pool_planner.clock import SpeedClock
from pool_planner.types import ClusterUnavailable, Conflict

REPOSITORY = Path(__file__).parents[2]
ENGINE = Path(__file__).with_name("tiny_engine.py")
SPEED = 20.0
COLD_S = 8.0  # 0.4 s of wall time: longer than a tiny engine takes to answer
POOLS = ("calm", "shrinking", "deadly", "troubled", "watched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    url: str
    pid: int
    clock: SpeedClock
    topology: Topology
    popen: subprocess.Popen[bytes]


def _topology(folder: Path, pools: tuple[str, ...]) -> Path:
    profile = REPOSITORY / "examples" / "two-models" / "profile"
    text = {
        "name": "test",
        "budget": {"gpus": {"h100": {"max": 64}}},
        "cluster": {"cold_start_s": COLD_S, "termination_s": 20.0},
        "groups": [
            {
                "name": name,
                "model": f"demo/{name}",
                "sla": {"ttft_ms": 6000, "itl_ms": 500},
                "pools": [{"name": name, "role": "agg", "gpu_type": "h100", "gpus_per_replica": 2, "profile": str(profile)}],
            }
            for name in pools
        ],
    }
    path = folder / "topology.json"
    path.write_text(json.dumps(text))
    return path


@contextmanager
def running(folder: Path, pools: tuple[str, ...] = POOLS, *, mood: str | None = "") -> Iterator[Running]:
    """`mood` None: the cluster's own engine, else the tiny one in that mood."""
    topology, port_file = _topology(folder, pools), folder / "ports.json"
    clock = SpeedClock(origin=time.time(), speed=SPEED)
    engine = f"{sys.executable} -S {ENGINE} {{port_file}} {mood}"
    command = [sys.executable, "-m", "global_planner.mocker.cluster", "--topology", str(topology)]
    command += ["--run-dir", str(folder / "run"), "--port-file", str(port_file)]
    command += [] if mood is None else ["--engine-command", engine]
    popen = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **clock.environment()}, start_new_session=True)
    try:
        wait_for(port_file.exists, what="the port file")
        told = json.loads(port_file.read_text())
        assert told["pid"] == popen.pid
        yield Running(url=told["url"], pid=popen.pid, clock=clock, topology=load_topology(topology), popen=popen)
    finally:
        popen.terminate()
        popen.wait(10)


def wait_for(true: Callable[[], bool], *, what: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def cluster(shared: Running) -> AsyncIterator[VirtualCluster]:
    async with VirtualCluster(shared.url, pool_specs(shared.topology), shared.clock) as client:
        yield client


async def holding(cluster: VirtualCluster, pool: str) -> Holding:
    return next(item for item in await cluster.observe() if item.pool == pool)


async def until(cluster: VirtualCluster, pool: str, true: Callable[[Holding], bool], within_s: float = 10.0) -> Holding:
    deadline = time.monotonic() + within_s
    while True:
        seen = await holding(cluster, pool)
        if true(seen):
            return seen
        assert time.monotonic() < deadline, f"waited {within_s} s; last seen {seen}"
        await asyncio.sleep(0.02)


def all_ready(count: int) -> Callable[[Holding], bool]:
    return lambda seen: [replica.state for replica in seen.replicas] == ["ready"] * count


async def post(url: str, body: object) -> int:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
        return answer.status


async def put(url: str, body: bytes) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.put(url, data=body) as answer:
        return answer.status, (await answer.json())["error"]


async def raw_pools(shared: Running) -> dict:
    async with aiohttp.ClientSession() as session, session.get(f"{shared.url}/v1/pools") as answer:
        return await answer.json()


async def pids_of(shared: Running, pool: str) -> dict[str, int]:
    view = next(view for view in (await raw_pools(shared))["pools"] if view["name"] == pool)
    return {item["id"]: item["pid"] for item in view["items"] if item["pid"]}


async def events(shared: Running, after: int = 0) -> list[dict]:
    async with aiohttp.ClientSession() as session, session.get(f"{shared.url}/v1/events?after={after}") as answer:
        return (await answer.json())["events"]


async def test_the_minima_stand_at_once_and_growth_pays_its_cold_start(cluster: VirtualCluster, shared: Running) -> None:
    before = await until(cluster, "calm", all_ready(1))
    assert (before.spec, before.gpus_per_replica, before.cold_start_s, before.unknown) == (1, 2, None, None)
    await cluster.apply(Grow(pool="calm", before=1, after=3, version=before.version, reason="test"))
    seen = await holding(cluster, "calm")
    assert seen.spec == 3
    assert [replica.state for replica in seen.replicas] == ["ready", "starting", "starting"]
    after = await until(cluster, "calm", all_ready(3))
    assert after.cold_start_s is not None and COLD_S <= after.cold_start_s < COLD_S + 20
    urls = [replica.url for replica in after.replicas]
    assert len(set(urls)) == 3
    async with aiohttp.ClientSession() as session, session.get(f"{urls[2]}/health") as answer:
        assert answer.status == 200


async def test_a_shrink_ends_its_victims_and_a_stale_one_ends_nobody(cluster: VirtualCluster, shared: Running) -> None:
    one = await until(cluster, "shrinking", all_ready(1))
    await cluster.apply(Grow(pool="shrinking", before=1, after=2, version=one.version, reason="test"))
    two = await until(cluster, "shrinking", all_ready(2))
    victim = two.replicas[0].id
    stale = Shrink(pool="shrinking", before=2, after=1, victims=(victim,), version=one.version, reason="test")
    with pytest.raises(Conflict, match=f"shrinking is at version {two.version}, not {one.version}"):
        await cluster.apply(stale)
    assert (await holding(cluster, "shrinking")).replicas == two.replicas
    pid = (await pids_of(shared, "shrinking"))[victim]
    await cluster.apply(Shrink(pool="shrinking", before=2, after=1, victims=(victim,), version=two.version, reason="test"))
    left = await until(cluster, "shrinking", all_ready(1))
    assert victim not in {replica.id for replica in left.replicas}
    assert gone([pid])()


async def test_a_killed_engine_is_noticed_at_once_and_replaced(cluster: VirtualCluster, shared: Running) -> None:
    (victim,) = (await until(cluster, "deadly", all_ready(1))).replicas
    before = (await events(shared))[-1]["no"]
    os.kill((await pids_of(shared, "deadly"))[victim.id], signal.SIGKILL)
    killed_at = time.monotonic()
    seen = await until(cluster, "deadly", lambda seen: seen.replicas[0].id != victim.id)
    assert time.monotonic() - killed_at < 1.0
    assert (seen.spec, [replica.state for replica in seen.replicas]) == (1, ["starting"])
    await until(cluster, "deadly", all_ready(1))
    story = [event["what"] for event in await events(shared, before) if event["pool"] == "deadly"]
    assert story == ["died while ready (signal SIGKILL)", f"replaces {victim.id}", "ready"]


async def test_a_replica_without_a_place_says_why_and_can_be_cancelled(cluster: VirtualCluster, shared: Running) -> None:
    before = await until(cluster, "troubled", all_ready(1))
    faults = f"{shared.url}/v1/faults"
    assert await post(faults, {"pools": {"troubled": {"unschedulable": "no node has 2 free GPUs"}}}) == 200
    await cluster.apply(Grow(pool="troubled", before=1, after=2, version=before.version, reason="test"))
    stuck = await holding(cluster, "troubled")
    assert [replica.unschedulable for replica in stuck.replicas] == [None, "no node has 2 free GPUs"]
    cancel = Cancel(
        pool="troubled",
        before=2,
        after=1,
        victims=(stuck.replicas[1].id,),
        version=stuck.version,
        backoff_until_s=0.0,
        reason="test",
    )
    await cluster.apply(cancel)
    assert all_ready(1)(await holding(cluster, "troubled"))
    assert await post(faults, {"pools": {"troubled": {}}}) == 200
    assert await post(faults, {"pools": {"nobody": {}}}) == 404


async def test_every_trouble_becomes_one_of_two_errors(cluster: VirtualCluster, shared: Running) -> None:
    seen = await until(cluster, "watched", all_ready(1))
    grow = Grow(pool="watched", before=1, after=2, version=seen.version, reason="test")
    faults = f"{shared.url}/v1/faults"
    await post(faults, {"fail_writes": 1, "fail_reads": 1})
    with pytest.raises(ClusterUnavailable, match="watched: status 500: a write was made to fail"):
        await cluster.apply(grow)
    with pytest.raises(ClusterUnavailable, match="status 500: a read was made to fail"):
        await cluster.observe()
    await post(faults, {"conflict_writes": 1})
    with pytest.raises(Conflict):
        await cluster.apply(grow)
    assert (await holding(cluster, "watched")).spec == 1
    # Carried out, but nobody learns of it: the error says no more than that the outcome is unknown.
    await post(faults, {"lose_answers": 1})
    with pytest.raises(ClusterUnavailable):
        await cluster.apply(grow)
    assert (await holding(cluster, "watched")).spec == 2
    await post(faults, {"delay_s": 0.5 * SPEED})
    async with VirtualCluster(shared.url, (), shared.clock, timeout_s=0.1) as impatient:
        with pytest.raises(ClusterUnavailable, match="Timeout"):
            await impatient.observe()
    await post(faults, {"delay_s": 0.0})
    async with VirtualCluster("http://127.0.0.1:9", (), shared.clock) as lost:
        with pytest.raises(ClusterUnavailable, match=r"127\.0\.0\.1:9"):
            await lost.observe()
    other = SpeedClock(origin=shared.clock.origin - 3600, speed=SPEED)
    async with VirtualCluster(shared.url, (), other) as elsewhere:
        with pytest.raises(ClusterUnavailable, match="its clock is 72000 model seconds from ours"):
            await elsewhere.observe()


async def test_a_pool_that_the_cluster_does_not_know_is_unknown_and_not_empty(shared: Running) -> None:
    ghost = PoolSpec(
        name="ghost", group="g", role="agg", gpu_type="h100", gpus_per_replica=1, dgd="g", component="agg", namespace="demo"
    )
    async with VirtualCluster(shared.url, (ghost,), shared.clock) as cluster:
        (seen,) = await cluster.observe()
    assert (seen.spec, seen.unknown) == (None, "the cluster has no pool 'ghost'")


NONSENSE = {
    "not JSON": (b"{", 422, "Invalid JSON"),
    "no count": (b"{}", 422, "replicas: Field required"),
    "a count in words": (b'{"replicas": "two"}', 422, "replicas: Input should be a valid integer"),
    "a flag as a count": (b'{"replicas": true}', 422, "replicas: Input should be a valid integer"),
    "fewer than none": (b'{"replicas": -1}', 422, "replicas: Input should be greater than or equal to 0"),
    "more than a machine": (b'{"replicas": 9999}', 422, "replicas: Input should be less than or equal to 512"),
    "an unknown field": (b'{"replicas": 1, "victim": []}', 422, "victim: Extra inputs are not permitted"),
    "victims of a growth": (b'{"replicas": 9, "victims": ["a"]}', 422, "victims: 1 named"),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_refused_in_a_sentence(shared: Running, name: str) -> None:
    body, status, text = NONSENSE[name]
    told = await put(f"{shared.url}/v1/pools/calm/scale", body)
    assert told[0] == status and text in told[1]
    assert (await put(f"{shared.url}/v1/pools/nobody/scale", b'{"replicas": 1}'))[0] == 404


async def test_the_clusters_own_engine_serves_and_ends_when_told(tmp_path: Path) -> None:
    with running(tmp_path, POOLS[:1], mood=None) as cluster:
        async with VirtualCluster(cluster.url, pool_specs(cluster.topology), cluster.clock) as client:
            seen = await until(client, "calm", all_ready(1))
            ask = {"model": "demo/calm", "prompt": "hello", "max_tokens": 3}
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{seen.replicas[0].url}/v1/completions", json=ask) as answer,
            ):
                assert (await answer.json())["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
            await client.apply(Shrink(pool="calm", before=1, after=0, victims=(), version=seen.version, reason="test"))
            await until(client, "calm", lambda seen: not seen.replicas)
        assert [event["what"] for event in await events(cluster)][-1] == "ended (exit status 0)"


# ---- no engine stays behind ------------------------------------------------------------------------------------------


async def engines_of(cluster: Running) -> list[int]:
    return [pid for pool in POOLS[:2] for pid in (await pids_of(cluster, pool)).values()]


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_an_engine_that_will_not_end_is_killed_after_its_grace_and_with_its_cluster(tmp_path: Path) -> None:
    with running(tmp_path, POOLS[:2], mood="stubborn") as cluster:
        engines = await engines_of(cluster)
        assert len(engines) == 2
        async with VirtualCluster(cluster.url, pool_specs(cluster.topology), cluster.clock) as client:
            seen = await until(client, "calm", all_ready(1))
            await client.apply(Shrink(pool="calm", before=1, after=0, victims=(), version=seen.version, reason="test"))
            assert [replica.state for replica in (await holding(client, "calm")).replicas] == ["terminating"]
            assert (await raw_pools(cluster))["held_gpus"] == {"h100": 4}
            await until(client, "calm", lambda seen: not seen.replicas)
        story = [event for event in await events(cluster) if event["pool"] == "calm"][-3:]
        assert [event["what"] for event in story] == [
            "told to end",
            "killed: its grace was over",
            "ended (signal SIGKILL)",
        ]
        assert 20.0 <= story[1]["at_s"] - story[0]["at_s"] < 45.0
        answer = await raw_pools(cluster)
        assert (answer["held_gpus"], answer["peak_gpus"]) == ({"h100": 2}, {"h100": 4})
        cluster.popen.terminate()
        assert await asyncio.to_thread(cluster.popen.wait, 10) == 0
        wait_for(gone(engines), what="the engines to be gone", within_s=2)


async def test_no_engine_survives_a_cluster_that_was_killed(tmp_path: Path) -> None:
    with running(tmp_path, POOLS[:2], mood="stubborn") as cluster:
        engines = await engines_of(cluster)
        cluster.popen.kill()
        assert await asyncio.to_thread(cluster.popen.wait, 10) == -signal.SIGKILL
        wait_for(gone(engines), what="the engines to be gone", within_s=2)


def test_the_cluster_ends_when_the_process_that_started_it_dies(tmp_path: Path) -> None:
    topology, port_file = _topology(tmp_path, POOLS[:2]), tmp_path / "ports.json"
    engine = f"{sys.executable} -S {ENGINE} {{port_file}}"
    command = [sys.executable, "-m", "global_planner.mocker.cluster", "--topology", str(topology), "--run-dir", str(tmp_path)]
    command += ["--port-file", str(port_file), "--engine-command", engine]
    start = f"import subprocess, time; subprocess.Popen({command!r}, start_new_session=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", start], cwd=REPOSITORY)
    try:
        wait_for(port_file.exists, what="the port file")
        pid = json.loads(port_file.read_text())["pid"]
        engines = asyncio.run(engines_of(_known(json.loads(port_file.read_text())["url"])))
        assert len(engines) == 2
    finally:
        parent.kill()
        parent.wait(5)
    wait_for(gone([pid, *engines]), what="cluster and engines to be gone", within_s=6)


def _known(url: str) -> Running:
    return Running(url=url, pid=0, clock=SpeedClock(origin=0.0), topology=None, popen=None)  # type: ignore[arg-type]


async def test_an_engine_that_cannot_start_is_tried_again_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, POOLS[:1], mood="broken") as cluster:
        await asyncio.sleep(0.4)
        story = [event["what"] for event in await events(cluster)]
        assert story[:2] == ["died while starting (exit status 3)", "replaces calm-1"]
        assert len(story) <= 12  # backed off: not a storm of processes
        cluster.popen.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(cluster.popen.wait, 10) == 0


def test_a_bad_topology_is_refused_before_anything_starts(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\n")
    command = [sys.executable, "-m", "global_planner.mocker.cluster", "--topology", str(bad), "--run-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"{bad}: budget: is missing" in done.stderr
    assert f"{bad}: groups: is missing" in done.stderr
