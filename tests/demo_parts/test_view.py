"""Snapshots and the two views, from a made-up run: what is known when, and that the picture fits the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import cache, reduce

import pytest
from rich.console import Console

from global_planner.compile import budget_of, group_specs, pool_specs
from global_planner.demo.snapshot import Known, Snapshot, change, learn, snapshot
from global_planner.demo.view import LineView, TerminalView, line_of, open_view, picture
from global_planner.mocker.load_record import LoadProgress
from global_planner.types import Drain, Grow, Replica, Round, Undrain
from tests.demo_parts import story

ROUNDS = [record for record in story.journal() if isinstance(record, Round)]
NOTES = [(500.0, "engine chat-decode-2 died (signal 9)"), (520.0, "the arbiter went on after round 104 as process 4711")]


@cache
def known_at(at_s: float) -> Known:
    told = [(one.inputs.at_s if isinstance(one, Round) else one.at_s, one) for one in story.journal()]  # type: ignore[attr-defined]
    return reduce(learn, [one for told_s, one in told if told_s <= at_s], Known())


def seen(known: Known, load: LoadProgress | None, *, at_s: float = 900.0, notes: list[tuple[float, str]] = NOTES) -> Snapshot:
    topology = story.topology()
    return snapshot(
        title="two-models: built-in workload",
        groups=group_specs(topology),
        pools=pool_specs(topology),
        budget=budget_of(topology),
        known=known,
        load=load,
        notes=notes,
        at_s=at_s,
        span_s=story.SPAN_S,
        speed=20.0,
    )


def drawn(shown: Snapshot, width: int, height: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=True, color_system=None).print(
        picture(shown, width=width, height=height)
    )
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.getvalue().splitlines()]


# ---- snapshots -------------------------------------------------------------------------------------------------------


def test_before_anything_is_known_everything_is_unknown() -> None:
    shown = seen(Known(), None, at_s=3.0, notes=[])
    assert len(shown.pools) == 6
    assert {(line.wanted, line.granted, line.ready, line.latency_ms, line.decision) for line in shown.pools} == {(None,) * 5}
    assert [(line.gpu_type, line.charged_gpus, line.max_gpus) for line in shown.budgets] == [("h100", 0, 14)]
    assert shown.now_s == 0.0
    assert any("?" in line for line in drawn(shown, 100, 30))


def test_a_running_system_is_told_pool_by_pool() -> None:
    shown = seen(known_at(900.0), story.progress(900.0))
    done = known_at(900.0).last_round
    assert done is not None and shown.now_s == 860.0
    for line, spec in zip(shown.pools, pool_specs(story.topology()), strict=True):
        want = story.wanted(spec, 860.0)
        assert (line.wanted, line.granted) == (want, want)
        assert line.charged_gpus == line.ready
        assert (line.metric, line.sla_ms) == (("TTFT", 6000.0) if spec.role == "prefill" else ("ITL", 500.0))
        assert line.latency_ms is not None and line.decision is not None
    budget = shown.budgets[0]
    assert budget.charged_gpus == done.charged_gpus["h100"] == sum(budget.by_group.values())


def test_the_last_change_stays_in_view_until_the_next() -> None:
    changed = next(done for done in ROUNDS if done.inputs.at_s > 100.0 and any(isinstance(step, Grow) for step in done.steps))
    step = next(step for step in changed.steps if isinstance(step, Grow))
    later = learn(known_at(changed.inputs.at_s), replace(changed, steps=(), outcomes=()))
    decision = later.decisions[step.pool]
    assert (decision.at_s, decision.what) == (changed.inputs.at_s, f"{step.before} → {step.after}")
    assert decision.reason == step.reason


def test_a_pool_that_gets_less_than_it_asks_for_says_what_binds() -> None:
    done = ROUNDS[150]
    grants = [
        replace(grant, wanted=5, granted=2, binding="budget h100 14", reason="2 of 5: budget h100 14 binds")
        if grant.pool == "chat-decode"
        else grant
        for grant in done.allocation.pools
    ]
    short = replace(done, outcomes=(), steps=(), allocation=replace(done.allocation, pools=tuple(grants)))
    known = learn(known_at(700.0), short)
    assert known.decisions["chat-decode"].what == "short"
    assert "budget h100 14 binds" in known.decisions["chat-decode"].reason


def test_replicas_on_their_way_in_and_out_are_counted_apart() -> None:
    done = ROUNDS[0]
    holding = replace(
        done.inputs.holdings[1],
        spec=4,
        replicas=(
            Replica(id="a", state="ready"),
            Replica(id="b", state="starting"),
            Replica(id="c", state="draining"),
            Replica(id="d", state="terminating"),
        ),
    )
    known = learn(Known(), replace(done, inputs=replace(done.inputs, holdings=(done.inputs.holdings[0], holding))))
    line = seen(known, None).pools[1]
    # Four are ordered, three live: one more is not even created yet.
    assert (line.ready, line.starting, line.leaving, line.charged_gpus) == (1, 2, 2, 5)


def test_changes_in_a_few_words() -> None:
    assert change(Drain(pool="p", replicas=("a", "b"), deadline_s=1.0, reason="r")) == "drains 2"
    assert change(Undrain(pool="p", replicas=("a",), reason="r")) is None


def test_what_a_view_has_no_use_for_changes_nothing() -> None:
    assert learn(Known(), "a torn record") == Known()


# ---- the terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(100, 30), (140, 40), (120, 24), (90, 24), (80, 24), (200, 60)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    lines = drawn(seen(known_at(900.0), story.progress(900.0)), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("GPUs charged against the budget", "h100", "10/14", "chat-decode", "code-prefill-long"):
        assert part in text
    assert "engine chat-decode-2 died" in text or height <= 24


def test_at_100_by_30_everything_that_was_promised_is_there() -> None:
    lines = drawn(seen(known_at(900.0), story.progress(900.0)), 100, 30)
    pool = next(line for line in lines if line.startswith("chat-decode"))
    assert re.search(r"decode +3 +3 +3 +· +· +ITL 36\d ms / 500 ms +13:\d\d 4 → 3", pool)
    text = "\n".join(lines)
    assert "14:20 of 40:00 model time, 20×" in text
    assert re.search(
        r"181 rounds, \d+ up, \d+ down │ [\d,]+ sent, 16 in flight, [\d,]+ done, 3 retried, 0 rejected, 0 lost", text
    )
    assert "ITL 612 ms! / 500 ms" in text  # over its SLA: marked, not only coloured
    assert "the arbiter went on after round 104" in text


def test_the_live_view_draws_and_gives_the_terminal_back() -> None:
    out = io.StringIO()
    with TerminalView(Console(file=out, width=100, height=30, force_terminal=True)) as view:
        view.show(seen(Known(), None))
        view.say("[red]not markup")
        view.show(seen(known_at(900.0), story.progress(900.0)))
    assert "[red]not markup" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


# ---- no terminal -----------------------------------------------------------------------------------------------------


def test_without_a_terminal_a_line_is_told_every_few_seconds() -> None:
    out = io.StringIO()
    with open_view(out) as view:
        assert isinstance(view, LineView)
        for _ in range(5):
            view.show(seen(known_at(900.0), story.progress(900.0)))
        view.say("done")
    first, last = out.getvalue().splitlines()
    assert last == "done"
    assert first.startswith("14:20/40:00 round 181 | h100 10/14 | ")
    assert "chat-decode=3/3/3" in first


def test_the_line_says_what_is_not_known() -> None:
    line = line_of(seen(Known(), None))
    assert "load not started" in line and "chat-decode=?/?/?" in line and "TTFT –" in line
