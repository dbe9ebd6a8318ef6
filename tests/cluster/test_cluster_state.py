"""The virtual cluster's books: stories on a virtual clock, and every interleaving against what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from global_planner.mocker.cluster_records import (
    Faults,
    Kill,
    Launch,
    Nonsense,
    StaleVersion,
    Terminate,
    VirtualNode,
    VirtualPool,
)
from global_planner.mocker.cluster_state import ClusterState

COLD_S, GRACE_S = 30.0, 10.0


def cluster(replicas: int = 1, *, initial_cold_start_s: float = 0.0) -> ClusterState:
    pool = VirtualPool(name="p", gpu_type="h100", gpus_per_replica=2, replicas=replicas)
    return ClusterState([pool], cold_start_s=COLD_S, initial_cold_start_s=initial_cold_start_s, termination_s=GRACE_S)


def states(state: ClusterState) -> dict[str, str]:
    return {replica.id: replica.state for replica in state.replicas("p")}


def said(state: ClusterState) -> list[str]:
    return [f"{event.at_s:g} {event.replica or event.pool}: {event.what}" for event in state.events()]


def ready_cluster(replicas: int) -> ClusterState:
    state = cluster(replicas)
    state.start(0)
    for number in range(1, replicas + 1):
        state.healthy(f"p-{number}", f"http://127.0.0.1:{9000 + number}", 0)
    return state


def test_a_replica_of_two_nodes_waits_until_both_have_room() -> None:
    small = VirtualPool(name="small", gpu_type="h100", gpus_per_replica=2, replicas=3)
    wide = VirtualPool(name="wide", gpu_type="h100", gpus_per_replica=8, replicas=0, nodes_per_replica=2)
    state = ClusterState(
        [small, wide],
        cold_start_s=COLD_S,
        initial_cold_start_s=0.0,
        termination_s=GRACE_S,
        nodes=[VirtualNode(name="a", gpu_type="h100", gpus=4), VirtualNode(name="b", gpu_type="h100", gpus=4)],
    )
    assert len(state.start(0)) == 3
    assert [replica.nodes for replica in state.replicas("small")] == [("a",), ("a",), ("b",)]
    assert state.free_on_nodes() == {"a": 0, "b": 2}
    # Two replicas of small leave; their GPUs are held until their processes are gone.
    assert state.scale("wide", 1, (), None, 10) == []
    [waits] = state.replicas("wide")
    assert waits.unschedulable == "no 2 nodes have 4 free GPUs of h100" and not waits.nodes
    state.scale("small", 0, (), None, 20)
    assert state.tick(25) == [] and state.free_on_nodes() == {"a": 0, "b": 2}
    state.exited("small-1", "status 0", 26)
    state.exited("small-2", "status 0", 26)
    assert not waits.nodes, "b has no room for its half yet"
    assert state.exited("small-3", "status 0", 27) == [Launch(pool="wide", replica="wide-1")]
    assert waits.nodes == ("a", "b") and waits.unschedulable is None
    assert state.free_on_nodes() == {"a": 0, "b": 0}
    state.healthy("wide-1", "http://127.0.0.1:9001", 28)
    state.tick(27 + COLD_S)
    assert waits.state == "ready" and state.cold_starts_s("wide") == (), "who waited for a place says nothing about a start"


def test_a_pool_grows_and_shrinks() -> None:
    state = cluster(1)
    assert state.start(0) == [Launch(pool="p", replica="p-1")]
    state.healthy("p-1", "http://127.0.0.1:9001", 0.2)
    assert states(state) == {"p-1": "ready"}  # no cold start for what stands from the start

    # One more is ordered: its process is up in a moment, but it is ready only when the cold start has passed.
    assert state.scale("p", 2, [], "1", 10) == [Launch(pool="p", replica="p-2")]
    assert state.version("p") == "2"
    state.healthy("p-2", "http://127.0.0.1:9002", 11)
    assert states(state) == {"p-1": "ready", "p-2": "starting"}
    assert state.next_due_s() == 40
    state.tick(39.9)
    assert states(state)["p-2"] == "starting"
    state.tick(40)
    assert states(state) == {"p-1": "ready", "p-2": "ready"}
    assert state.cold_starts_s("p") == (30,)

    # The older one is the victim. It is terminating, and holds its GPUs, until its process is gone.
    assert state.scale("p", 1, ["p-1"], "2", 50) == [Terminate(replica="p-1")]
    assert states(state) == {"p-1": "terminating", "p-2": "ready"}
    assert state.held_gpus() == {"h100": 4}
    assert state.tick(59.9) == []
    assert state.tick(60) == [Kill(replica="p-1")]
    assert state.tick(61) == []  # once
    state.exited("p-1", "signal SIGKILL", 61)
    assert states(state) == {"p-2": "ready"}
    assert state.held_gpus() == {"h100": 2}
    assert state.peak_gpus() == {"h100": 4}
    assert said(state) == [
        "0.2 p-1: ready",
        "10 p: scaled from 1 to 2",
        "40 p-2: ready",
        "50 p: scaled from 2 to 1",
        "50 p-1: told to end",
        "60 p-1: killed: its grace was over",
        "61 p-1: ended (signal SIGKILL)",
    ]


def test_a_slow_process_is_ready_when_it_answers_and_that_is_what_is_measured() -> None:
    state = ready_cluster(1)
    state.scale("p", 2, [], None, 0)
    state.tick(COLD_S)
    assert states(state)["p-2"] == "starting"
    state.healthy("p-2", "http://127.0.0.1:9002", 47)
    assert states(state)["p-2"] == "ready"
    assert state.cold_starts_s("p") == (47,)


def test_without_victims_the_youngest_go() -> None:
    state = ready_cluster(4)
    commands = state.scale("p", 1, ["p-2"], None, 5)
    assert commands == [Terminate(replica="p-2"), Terminate(replica="p-4"), Terminate(replica="p-3")]


def test_a_dead_replica_is_replaced_and_the_spec_keeps_its_count() -> None:
    state = ready_cluster(2)
    assert state.exited("p-1", "signal SIGKILL", 20) == [Launch(pool="p", replica="p-3")]
    assert (state.spec("p"), state.version("p")) == (2, "1")
    assert states(state) == {"p-2": "ready", "p-3": "starting"}
    state.healthy("p-3", "http://127.0.0.1:9003", 21)
    state.tick(50)
    assert states(state)["p-3"] == "ready"
    assert said(state)[-3:] == ["20 p-1: died while ready (signal SIGKILL)", "20 p-3: replaces p-1", "50 p-3: ready"]


def test_a_replica_that_cannot_start_is_tried_again_later_and_later() -> None:
    state = cluster(1)
    state.start(0)
    now, waits = 0.0, []
    for number in range(1, 9):
        assert state.exited(f"p-{number}", "exit status 3", now) == []
        due = state.next_due_s()
        assert due is not None
        waits.append(due - now)
        now = due
        assert state.tick(now) == [Launch(pool="p", replica=f"p-{number + 1}")]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64]
    state.healthy("p-9", "http://127.0.0.1:9009", now)
    state.tick(now + COLD_S)
    state.exited("p-9", "signal SIGKILL", now + 40)
    assert state.next_due_s() is None  # launched at once: it had been ready
    state.exited("p-10", "exit status 3", now + 41)
    assert state.next_due_s() == now + 42  # and the waits begin anew


def test_late_news_of_a_replica_that_ends_is_ignored() -> None:
    state = cluster(1)
    state.start(0)
    state.scale("p", 0, [], None, 1)
    assert state.healthy("p-1", "http://127.0.0.1:9001", 2) == []
    (ending,) = state.replicas("p")
    assert (ending.state, ending.url) == ("terminating", None)
    state.exited("p-1", "exit status 0", 3)
    assert state.healthy("p-1", "http://127.0.0.1:9001", 4) == state.exited("p-1", "again", 4) == []
    assert state.replicas("p") == ()


def test_a_starting_replica_that_is_unscheduled_takes_no_process_and_says_why() -> None:
    state = ready_cluster(1)
    state.trouble("p", Faults(unschedulable="0/3 nodes have 2 free GPUs"), 0)
    assert state.scale("p", 2, [], "1", 0) == []
    (waiting,) = [replica for replica in state.replicas("p") if replica.state == "starting"]
    assert (waiting.unschedulable, waiting.launched) == ("0/3 nodes have 2 free GPUs", False)
    # Taken back before there was a process: it is simply gone.
    assert state.scale("p", 1, ["p-2"], "2", 5) == []
    assert states(state) == {"p-1": "ready"}
    # Ordered again, and a place comes free: the cold start counts from there, and is not measured.
    state.scale("p", 2, [], "3", 10)
    assert state.trouble("p", Faults(), 100) == [Launch(pool="p", replica="p-3")]
    state.healthy("p-3", "http://127.0.0.1:9003", 101)
    state.tick(129)
    assert states(state)["p-3"] == "starting"
    state.tick(130)
    assert states(state)["p-3"] == "ready"
    assert state.cold_starts_s("p") == ()


def test_a_hanging_start_never_becomes_ready_until_the_trouble_ends() -> None:
    state = ready_cluster(1)
    state.trouble("p", Faults(hang=True), 0)
    state.scale("p", 2, [], "1", 0)
    state.healthy("p-2", "http://127.0.0.1:9002", 1)
    state.tick(500)
    assert states(state) == {"p-1": "ready", "p-2": "starting"}
    assert state.next_due_s() is None
    state.trouble("p", Faults(), 600)
    assert states(state)["p-2"] == "ready"


REFUSED = {
    "a stale version": (1, [], "7", StaleVersion, "p is at version 1, not 7"),
    "a victim that is gone": (1, ["p-9"], None, StaleVersion, "p-9: not a live replica of p"),
    "too many victims": (2, ["p-1", "p-2"], None, Nonsense, "2 named, but from 3 to 2 replicas 1 go"),
    "victims of a growth": (4, ["p-1"], None, Nonsense, "1 named, but from 3 to 4 replicas 0 go"),
    "a victim twice": (1, ["p-1", "p-1"], None, Nonsense, "named twice"),
    "fewer than none": (-1, [], None, Nonsense, "not within 0..512"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_order_changes_nothing(name: str) -> None:
    replicas, victims, version, error, text = REFUSED[name]
    state = ready_cluster(3)
    before = (state.spec("p"), state.version("p"), states(state), state.events())
    with pytest.raises(error, match=text):
        state.scale("p", replicas, victims, version, 5)
    assert (state.spec("p"), state.version("p"), states(state), state.events()) == before


def test_ordering_what_is_there_moves_nothing_but_the_version() -> None:
    """Whoever orders the same count takes an earlier order back: an answer that was lost must not win after it."""
    state = ready_cluster(2)
    assert state.scale("p", 2, [], "1", 5) == []
    assert (state.spec("p"), state.version("p")) == (2, "2")
    with pytest.raises(StaleVersion, match="p is at version 2, not 1"):
        state.scale("p", 3, [], "1", 6)


class Interleavings(RuleBasedStateMachine):
    """Orders, deaths, troubles and the passing of time in any order. The twin is a plain dictionary of live processes."""

    def __init__(self) -> None:
        super().__init__()
        self.state = cluster(2, initial_cold_start_s=5.0)
        self.now = 0.0
        self.processes: dict[str, str] = {}
        self.seen: set[str] = set()

    def obey(self, commands: list) -> None:
        for command in commands:
            match command:
                case Launch(replica=replica):
                    assert replica not in self.seen, "an id was used twice"
                    self.seen.add(replica)
                    self.processes[replica] = "up"
                case Terminate(replica=replica):
                    assert self.processes[replica] == "up"
                    self.processes[replica] = "ending"
                case Kill(replica=replica):
                    assert self.processes.pop(replica) == "ending"
                    self.obey(self.state.exited(replica, "signal SIGKILL", self.now))

    @initialize()
    def begin(self) -> None:
        self.obey(self.state.start(self.now))

    @rule(replicas=st.integers(-1, 6), data=st.data(), stale=st.booleans())
    def order(self, replicas: int, data: st.DataObject, stale: bool) -> None:
        victims = data.draw(st.lists(st.sampled_from([*sorted(states(self.state)), "p-0"]), max_size=2))
        version = "0" if stale else self.state.version("p")
        before = (self.state.spec("p"), self.state.version("p"), states(self.state))
        try:
            commands = self.state.scale("p", replicas, victims, version, self.now)
        except (StaleVersion, Nonsense):
            assert (self.state.spec("p"), self.state.version("p"), states(self.state)) == before
            return
        assert self.state.spec("p") == replicas
        assert not set(victims) & {id_ for id_, state in states(self.state).items() if state != "terminating"}
        self.obey(commands)

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.state.tick(self.now))

    @rule(data=st.data())
    def a_process_answers(self, data: st.DataObject) -> None:
        if self.processes:
            replica = data.draw(st.sampled_from(sorted(self.processes)))
            self.obey(self.state.healthy(replica, "http://127.0.0.1:1", self.now))

    @rule(data=st.data())
    def a_process_ends(self, data: st.DataObject) -> None:
        if self.processes:
            replica = data.draw(st.sampled_from(sorted(self.processes)))
            del self.processes[replica]
            self.obey(self.state.exited(replica, "exit status 1", self.now))

    @rule(hang=st.booleans(), stuck=st.booleans())
    def trouble(self, hang: bool, stuck: bool) -> None:
        self.obey(self.state.trouble("p", Faults(hang=hang, unschedulable="no GPU" if stuck else None), self.now))

    @invariant()
    def live_replicas_are_what_was_ordered(self) -> None:
        live = [replica for replica in self.state.replicas("p") if replica.state != "terminating"]
        assert len(live) == self.state.spec("p")

    @invariant()
    def a_process_for_every_launched_replica_and_no_other(self) -> None:
        launched = {replica.id for replica in self.state.replicas("p") if replica.launched}
        assert launched == set(self.processes)
        ending = {replica.id for replica in self.state.replicas("p") if replica.state == "terminating"}
        assert ending == {id_ for id_, how in self.processes.items() if how == "ending"}

    @invariant()
    def gpus_are_held_by_whatever_there_is(self) -> None:
        held = self.state.held_gpus()["h100"]
        assert held == 2 * len(self.state.replicas("p"))
        assert held <= self.state.peak_gpus()["h100"]

    @invariant()
    def nobody_is_ready_before_its_cold_start(self) -> None:
        for replica in self.state.replicas("p"):
            if replica.state == "ready":
                assert self.now >= replica.ordered_at_s + replica.cold_start_s

    @invariant()
    def nothing_is_overdue(self) -> None:
        due = self.state.next_due_s()
        assert due is None or due > self.now


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestInterleavings = Interleavings.TestCase
