"""A running system and its operators, with real processes: what is ordered at the command line happens, and only that."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from global_planner.journal_reader import read
from global_planner.types import Override, Round
from tests.e2e.runs import TOPOLOGY, Inside, Run, console, finished, started, until

POOL = "chat-decode"
READY = r"ready: http://127\.0\.0\.1:\d+/v1 serves"
RUN = ("run", "--topology", str(TOPOLOGY), "--speed", "50", "--folder", "system")


class Operator:
    """Somebody with a terminal beside the system."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.inside = Inside(home / "system")

    def says(self, *arguments: str) -> str:
        done = finished(console("global-planner"), *arguments, "--folder", "system", folder=self.home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rounds(self) -> list[Round]:
        return [record for record in read(self.home / "system" / "journal") if isinstance(record, Round)]

    def replicas(self) -> int:
        return len(self.inside.engines(POOL))


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("operated"))


@pytest.fixture(scope="module")
def run(operator: Operator) -> Iterator[Run]:
    with started(*RUN, folder=operator.home) as found:
        found.wait_for(READY, 90)
        until(lambda: bool(operator.rounds()), 60, "the first round")
        yield found


def test_what_is_ordered_at_the_command_line_happens_and_what_is_frozen_does_not(run: Run, operator: Operator) -> None:
    assert operator.replicas() == 2
    operator.says("override", "pin", POOL, "3", "--by", "anna")
    until(lambda: operator.replicas() == 3, 30, "the pinned number")

    operator.says("freeze", "--reason", "nobody touches anything")
    operator.says("override", "pin", POOL, "5", "--by", "anna")
    (arbiter,) = run.titled("GlobalPlannerActor")
    arbiter.kill()
    before = operator.rounds()[-1].inputs.round_no

    def frozen_rounds() -> list[Round]:
        return [done for done in operator.rounds() if done.inputs.round_no > before and done.inputs.freeze is not None]

    until(lambda: len(frozen_rounds()) >= 3, 60, "rounds of the arbiter that came back")
    assert any(step.pool == POOL for step in frozen_rounds()[-1].steps), "what would be done is recorded"
    assert not any(done.outcomes for done in frozen_rounds())
    assert operator.replicas() == 3
    assert "EVERYTHING IS FROZEN by" in operator.says("status")

    operator.says("unfreeze")
    until(lambda: operator.replicas() == 5, 30, "the number that was pinned meanwhile")


def test_it_all_goes_on_after_the_whole_system_was_stopped_and_started(run: Run, operator: Operator) -> None:
    run.popen.send_signal(signal.SIGTERM)
    assert run.end() == 0
    last = operator.rounds()[-1].inputs
    with started(*RUN, folder=operator.home) as again:
        again.wait_for(READY, 90)
        until(lambda: operator.rounds()[-1].inputs.round_no > last.round_no, 60, "a round after the restart")
        first = next(done.inputs for done in operator.rounds() if done.inputs.round_no > last.round_no)
        # A round that the end cut short has left its orders in the journal, but no record: its number is not given again.
        assert last.round_no < first.round_no <= last.round_no + 2
        assert first.at_s > last.at_s, "model time has not begun anew"
        assert first.overrides == (Override(pool=POOL, kind="pin", replicas=5, by="anna"),)
        until(lambda: operator.replicas() == 5, 30, "the pinned number in the new cluster")
        checked = finished(console("global-planner"), "replay", "--check", "system", folder=operator.home)
        assert checked.returncode == 0, checked.stdout + checked.stderr
