"""Who decides: one at a time, and what the one before still has under way breaks no budget."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from global_planner.lease import LeaderLease
from global_planner.ports import Reservation
from pool_planner.types import Conflict
from tests.kube.conftest import Start
from tests.kube.leader import Leader, pools_of
from tests.kube.play import Play
from tests.kube.proxy import Proxy
from tests.kube.server import ApiServer

Lead = Callable[..., Leader]


def lease(server: ApiServer, namespace: str, identity: str, clock: list[float], *, lease_s: float = 30.0) -> LeaderLease:
    return LeaderLease(
        server.api(),
        namespace=namespace,
        name="planner",
        identity=identity,
        lease_s=lease_s,
        write_deadline_s=5.0,
        monotonic=lambda: clock[0],
    )


def stand(one: LeaderLease) -> str:
    return asyncio.run(one.stand()).kind


def test_a_lease_passes_on_when_it_has_run_out_and_no_write_can_be_under_way(server: ApiServer, namespace: str) -> None:
    clock = [100.0]
    first, second = lease(server, namespace, "first", clock), lease(server, namespace, "second", clock)
    assert stand(first) == "leader" and stand(second) == "standby"
    clock[0] += 29.0
    assert stand(second) == "standby", "29 s after the renewal it still runs"
    assert stand(first) == "leader"
    clock[0] += 20.0
    assert stand(second) == "standby", "it was renewed meanwhile"
    clock[0] += 31.0
    assert first.left_s() == 0.0, "who does not renew knows by itself that it has lost it"
    assert stand(second) == "waiting", "a write of the first may be under way for another 5 s"
    clock[0] += 4.0
    assert stand(second) == "waiting"
    clock[0] += 1.5
    assert stand(second) == "leader" and second.left_s() > 0.0
    assert stand(first) == "standby"


def test_a_lease_that_is_handed_back_passes_on_at_once(server: ApiServer, namespace: str) -> None:
    clock = [0.0]
    first, second = lease(server, namespace, "first", clock), lease(server, namespace, "second", clock)
    assert stand(first) == "leader"
    asyncio.run(first.give_up())
    assert first.left_s() == 0.0
    assert stand(second) == "leader"


def test_of_many_who_want_it_at_the_same_time_one_gets_it(server: ApiServer, namespace: str) -> None:
    clock = [0.0]
    many = [lease(server, namespace, f"planner-{number}", clock) for number in range(6)]
    kinds: list[str] = []
    threads = [threading.Thread(target=lambda one=one: kinds.append(stand(one))) for one in many]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert sorted(kinds) == ["leader", *["standby"] * 5]


def test_the_ledger_is_kept_by_whoever_has_the_lease_and_by_nobody_else(server: ApiServer, namespace: str) -> None:
    clock = [0.0]
    first, second = lease(server, namespace, "first", clock), lease(server, namespace, "second", clock)
    assert stand(first) == "leader"
    before = asyncio.run(first.read())
    asyncio.run(first.swap(before.version, [Reservation(pool="chat", replicas=3, version="7")]))
    with pytest.raises(Conflict, match="the ledger is at 1, not 0"):
        asyncio.run(first.swap(before.version, []))
    assert stand(first) == "leader", "a renewal keeps the ledger"

    clock[0] += 31.0
    assert stand(second) == "standby"
    clock[0] += 31.0
    assert stand(second) == "waiting"
    taken = asyncio.run(second.read())
    assert taken.entries == (Reservation(pool="chat", replicas=3, version="7"),), "the next leader counts what was reserved"
    with pytest.raises(Conflict, match="not ours any more"):
        asyncio.run(first.swap(taken.version, []))
    # Even one that thinks it has the lease is refused by the API server: its version of the lease is gone.
    clock[0] -= 62.0
    assert first.left_s() > 0.0
    with pytest.raises(Conflict):
        asyncio.run(first.swap(taken.version, []))


def test_two_planners_in_one_namespace_are_safe(start: Start, lead: Lead) -> None:
    """As when two Ray clusters are pointed at it: one decides, the other watches, and takes over when the first is gone."""
    play = start()
    other = lead(play, "two", lease_s=1.5)
    play.want(chat_prefill=3, chat_decode=3, code_prefill=1, code_decode=1, docs_prefill=1, docs_decode=1)
    other.wants.wanted = dict.fromkeys(play.leader.wants.wanted, 4)
    for _ in range(3):
        play.round()
        assert asyncio.run(other.step()) is None and other.standings[-1].kind == "standby"
    assert play.ordered()["chat-decode"] == 3

    asyncio.run(play.leader.lease.give_up())
    asyncio.run(other.step())
    assert other.standings[-1].kind == "leader"
    assert asyncio.run(play.leader.step()) is None, "who gave it back does not decide any more"
    for _ in range(3):
        play.pass_time()
        asyncio.run(other.step())
    assert play.violations == [] and play.gpus() <= 16


def test_a_paused_leader_whose_write_arrives_after_its_successors_breaks_no_budget(
    server: ApiServer, start: Start, lead: Lead, proxy: Proxy
) -> None:
    """The first leader has reserved and sent its growth; the network holds the write while the lease runs out, the second takes
    over and gives the same GPUs to another group; then the first's write arrives."""
    play = start(api=proxy.api("planner"), lease_s=1.0)
    play.want(chat_prefill=4, chat_decode=3, code_prefill=1, code_decode=1, docs_prefill=1, docs_decode=1)
    second = lead(play, "two", lease_s=1.0)
    second.wants.wanted = dict(play.leader.wants.wanted, **{"chat-prefill": 1, "chat-decode": 1, "code-decode": 5})

    proxy.held = threading.Event()
    rounds: list[object] = []
    first = threading.Thread(target=lambda: rounds.append(asyncio.run(play.leader.step())))
    first.start()
    wait_until(lambda: len(reserved(server, play)) == 2)
    wait_until(lambda: asyncio.run(second.lease.stand()).kind == "leader", 30.0)
    done = asyncio.run(second.step())
    assert done is not None
    charged = done.charged_gpus["h100"]
    assert charged == 8 + 3 + 4, "what the first has reserved counts, although nobody has seen it yet"
    assert play.ordered()["code-decode"] == 1, "and leaves no room for two more GPUs"

    proxy.held.set()
    first.join(30.0)
    time.sleep(0.3)
    play.watch()
    assert play.violations == []
    for _ in range(8):
        play.pass_time()
        asyncio.run(second.step())
        play.watch()
    assert play.violations == [] and play.gpus() <= 16
    assert play.ordered()["code-decode"] > 1, "the second is not kept from its own for ever"


def reserved(server: ApiServer, play: Play) -> list[object]:
    import json

    path = f"/apis/coordination.k8s.io/v1/namespaces/{play.namespace}/leases/planner"
    notes = server.admin.get(path)["metadata"]["annotations"]
    found: list[object] = json.loads(notes["global-planner.io/ledger"])
    return found


def wait_until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    from pool_planner.types import WorldError

    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        try:
            if true():
                return
        except WorldError:
            pass
        time.sleep(0.05)
    raise AssertionError("it does not happen")


@pytest.fixture
def lead(server: ApiServer) -> Iterator[Lead]:
    leaders: list[Leader] = []

    def make(play: Play, identity: str, *, lease_s: float) -> Leader:
        server_api = server.api("planner")
        leader = Leader(
            server_api,
            play.namespace,
            play.clock,
            pools=pools_of(play.namespace, play.fleet),
            identity=identity,
            lease_s=lease_s,
        )
        leaders.append(leader)
        return leader

    yield make
    for leader in leaders:
        leader.close()


@pytest.fixture
def proxy(server: ApiServer) -> Iterator[Proxy]:
    made = Proxy(server)
    made.start()
    yield made
    made.stop()
