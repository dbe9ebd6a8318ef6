"""[I/O] Shows snapshots: redrawn in place on a terminal, and as a line every few seconds where there is none."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from textwrap import wrap
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from global_planner.demo.snapshot import BudgetLine, ModelLine, PoolLine, Snapshot

LINE_WALL_S = 5.0
# Told apart without red and green, and each group also stands by its name.
GROUP_STYLES = ("cyan", "magenta", "yellow", "blue", "green")
_STILL_FINE = 0.9
_HEADINGS = ("wanted", "granted", "ready", "starting", "draining")
_SHORT_HEADINGS = ("want", "grant", "ready", "new", "drain")
_ROLE_WIDTH = 7
_LATENCY_WIDTH = 21
_DECISION_WIDTH = 16  # less room than this says nothing
# Reasons that go on after repeating the change, which stands in front of them here.
_RESTATED = re.compile(
    r"^(?:\d+ to \d+: |(?:raised|lowered) \d+ -> \d+: |granted \d+ of \d+: |(?:stays|kept) at \d+(?: of \d+ wanted)?: )+"
)


class View(Protocol):
    """Shows a run. A context manager: leaving it gives the terminal back as it was."""

    def show(self, snapshot: Snapshot) -> None: ...

    def say(self, text: str) -> None:
        """One line that stays, above whatever is redrawn."""
        ...

    def __enter__(self) -> View: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_view(out: TextIO = sys.stdout) -> View:
    """The live view on a terminal, lines elsewhere."""
    return TerminalView(Console(file=out)) if out.isatty() else LineView(out)


# ---- a terminal ----------------------------------------------------------------------------------------------------


class TerminalView:
    """Redraws the whole picture in place, as large as the terminal is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop")

    def __enter__(self) -> TerminalView:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, snapshot: Snapshot) -> None:
        self._live.update(picture(snapshot, width=self._console.width, height=self._console.height), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def picture(snapshot: Snapshot, *, width: int, height: int) -> RenderableType:
    """The whole view for a terminal of `width` x `height` characters."""
    styles = {line.group: GROUP_STYLES[index % len(GROUP_STYLES)] for index, line in enumerate(snapshot.models)}
    # Everything but decisions and events has a fixed height; decisions get up to three lines each, and three events are kept.
    room = height - (8 + len(snapshot.budgets) + len(snapshot.models))
    lines = max(1, min(3, (room - 3) // max(1, len(snapshot.pools))))
    return Group(
        _head(snapshot, width),
        _budgets(snapshot, styles, width),
        _pools(snapshot, styles, width, lines=lines),
        Text(),
        _models(snapshot, styles),
        _counts(snapshot),
        _events(snapshot, max(1, room - lines * len(snapshot.pools))),
    )


def _head(snapshot: Snapshot, width: int) -> Text:
    done = min(1.0, max(0.0, snapshot.now_s / snapshot.end_s)) if snapshot.end_s > 0 else 0.0
    state = "starting" if snapshot.load is None else "finishing" if snapshot.now_s > snapshot.end_s else "playing"
    title = Text.assemble((snapshot.title, "bold"), f"  {state}  ")
    clock = f" {clock_text(snapshot.now_s)} of {clock_text(snapshot.end_s)} model time, {snapshot.speed:g}× "
    title.no_wrap, title.overflow = True, "crop"
    bar = max(0, width - len(title) - len(clock) - 1)
    title.append("━" * round(bar * done), style="bold")
    title.append("━" * (bar - round(bar * done)), style="bright_black")
    title.append(clock, style="dim")
    return title


def _budgets(snapshot: Snapshot, styles: Mapping[str, str], width: int) -> Panel:
    return Panel(
        Group(*(_budget(line, styles, width - 4) for line in snapshot.budgets)),
        title="GPUs charged against the budget",
        title_align="left",
        border_style="bright_black",
    )


def _budget(line: BudgetLine, styles: Mapping[str, str], width: int) -> Text:
    """One cell a GPU where they fit, coloured by group; free GPUs are dots."""
    most = line.max_gpus
    label = f"{line.gpu_type:<6} "
    count = f" {line.charged_gpus}/{'∞' if most is None else most}"
    shares = "  ".join(f"{group} {gpus}" for group, gpus in line.by_group.items())
    room = max(10, width - len(label) - len(count) - len(shares) - 4)
    total = max(most or 0, line.charged_gpus, 1)
    cell = max(1, min(6, room // total))
    text = Text(label, no_wrap=True, overflow="crop")
    drawn = 0
    for group, gpus in line.by_group.items():
        cells = gpus * cell if total * cell <= room else round(gpus * room / total)
        text.append("█" * cells, style=styles.get(group, "white"))
        drawn += cells
    text.append("·" * (min(room, total * cell) - drawn), style="bright_black")
    over = most is not None and line.charged_gpus > most
    text.append(count, style="bold white on red" if over else "bold")
    text.append("  ")
    for group, gpus in line.by_group.items():
        text.append(f" {group} {gpus} ", style=styles.get(group, "white"))
    return text


def _pools(snapshot: Snapshot, styles: Mapping[str, str], width: int, *, lines: int) -> Table:
    headings = _HEADINGS if width >= 120 else _SHORT_HEADINGS
    name_width = max([4, *(len(line.pool) for line in snapshot.pools)])
    # What the decision gets: the rest, after a blank behind each of the other eight columns.
    rest = width - (name_width + _ROLE_WIDTH + sum(map(len, headings)) + _LATENCY_WIDTH + 8)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("pool", no_wrap=True, width=name_width)
    table.add_column("role", no_wrap=True, width=_ROLE_WIDTH)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("latency / SLA", justify="right", no_wrap=True, width=_LATENCY_WIDTH)
    decisions = rest >= _DECISION_WIDTH
    if decisions:
        table.add_column("last decision", no_wrap=True, width=rest)
    for line in snapshot.pools:
        cells: tuple[RenderableType, ...] = (
            Text(line.pool, style=styles.get(line.group, "white")),
            line.role,
            count_text(line.wanted),
            _granted(line),
            Text(count_text(line.ready), style="bold"),
            count_text(line.starting) if line.starting != 0 else "·",
            count_text(line.leaving) if line.leaving != 0 else "·",
            _latency(line.metric, line.latency_ms, line.sla_ms),
        )
        table.add_row(*cells, *((_decision(line, snapshot, lines, rest),) if decisions else ()))
    return table


def _granted(line: PoolLine) -> Text:
    short = line.wanted is not None and line.granted is not None and line.granted < line.wanted
    return Text(count_text(line.granted), style="bold yellow" if short else "")


def _decision(line: PoolLine, snapshot: Snapshot, lines: int, width: int) -> Text:
    if line.decision is None:
        return Text("–", style="dim")
    start_s = 0.0 if snapshot.load is None else snapshot.load.started_s
    head = f"{clock_text(line.decision.at_s - start_s)} {line.decision.what}"
    told = f"{head} {_RESTATED.sub('', line.decision.reason)}"
    text = Text("\n".join(wrap(told, width, max_lines=lines, placeholder=" …")), style="dim")
    text.stylize("not dim bold", 0, len(head))
    return text


def _latency(metric: str, value_ms: float | None, sla_ms: float) -> Text:
    text = Text(f"{metric} ", style="dim")
    if value_ms is None:
        text.append(f"– / {ms_text(sla_ms)}", style="dim")
        return text
    over = value_ms > sla_ms
    style = "bold red" if over else "yellow" if value_ms > _STILL_FINE * sla_ms else "green"
    text.append(f"{ms_text(value_ms)}{'!' if over else ''}", style=style)
    text.append(f" / {ms_text(sla_ms)}", style="dim")
    return text


def _models(snapshot: Snapshot, styles: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("sent", justify="right", no_wrap=True)
    table.add_column("completed", justify="right", no_wrap=True)
    table.add_column("clients' TTFT / SLA", justify="right", no_wrap=True)
    table.add_column("clients' ITL / SLA", justify="right", no_wrap=True)
    table.add_column("plan attains", justify="right", no_wrap=True)
    for line in snapshot.models:
        table.add_row(
            Text(line.model, style=styles[line.group]),
            f"{line.sent:,}",
            f"{line.completed:,}",
            _latency("TTFT", line.ttft_ms, line.ttft_sla_ms),
            _latency("ITL", line.itl_ms, line.itl_sla_ms),
            "–" if line.attainment is None else f"{line.attainment:.0%}",
        )
    return table


def _counts(snapshot: Snapshot) -> Text:
    known, load = snapshot.known, snapshot.load
    text = Text("\n", no_wrap=True, overflow="crop")
    text.append(f"{known.rounds:,} rounds, {known.scale_ups} up, {known.scale_downs} down", style="bold")
    if known.budget_violations:
        text.append(f", {known.budget_violations} over budget", style="bold white on red")
    if load is not None:
        text.append(f" │ {load.sent:,} sent, {load.in_flight} in flight, ")
        text.append(f"{load.completed:,} done", style="bold")
        text.append(f", {load.retried} retried, ")
        text.append(f"{load.rejected} rejected", style="yellow" if load.rejected else "")
        text.append(", ")
        text.append(f"{load.lost} lost", style="bold white on red" if load.lost else "")
    return text


def _events(snapshot: Snapshot, room: int) -> Text:
    text = Text()
    for at_s, what in snapshot.events[-room:]:
        text.append(f"{clock_text(at_s)} ", style="dim")
        text.append(what[:200] + "\n", style="yellow")
    text.rstrip()
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


# ---- no terminal ---------------------------------------------------------------------------------------------------


class LineView:
    """A line every `LINE_WALL_S` seconds, and what is said in between."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._next = 0.0

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._out.flush()

    def show(self, snapshot: Snapshot) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_WALL_S
            self.say(line_of(snapshot))

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def line_of(snapshot: Snapshot) -> str:
    """A snapshot in one line: time, GPUs, requests, and ready/granted/wanted replicas of every pool."""
    gpus = " ".join(
        f"{line.gpu_type} {line.charged_gpus}/{'∞' if line.max_gpus is None else line.max_gpus}" for line in snapshot.budgets
    )
    load = snapshot.load
    requests = "load not started"
    if load is not None:
        requests = f"{load.completed}/{load.sent} completed, {load.rejected} rejected, {load.lost} lost, {load.retried} retried"
    pools = " ".join(
        f"{line.pool}={count_text(line.ready)}/{count_text(line.granted)}/{count_text(line.wanted)}" for line in snapshot.pools
    )
    clock = f"{clock_text(snapshot.now_s)}/{clock_text(snapshot.end_s)}"
    return (
        f"{clock} round {snapshot.known.rounds} | {gpus} | {requests} | ready/granted/wanted {pools} | {_slas(snapshot.models)}"
    )


def _slas(models: tuple[ModelLine, ...]) -> str:
    return ", ".join(f"{line.model} TTFT {ms_text(line.ttft_ms)} ITL {ms_text(line.itl_ms)}" for line in models)


# ---- words ---------------------------------------------------------------------------------------------------------


def clock_text(seconds: float) -> str:
    """Minutes and seconds of model time.

    >>> clock_text(754.4), clock_text(-3)
    ('12:34', '-0:03')
    """
    whole = round(abs(seconds))
    return f"{'-' if seconds < -0.5 else ''}{whole // 60}:{whole % 60:02d}"


def count_text(count: int | None) -> str:
    return "?" if count is None else str(count)


def ms_text(value_ms: float | None) -> str:
    """A latency in three or four characters of number.

    >>> ms_text(312.4), ms_text(4210.0), ms_text(None)
    ('312 ms', '4.2 s', '–')
    """
    if value_ms is None:
        return "–"
    return f"{value_ms:.0f} ms" if value_ms < 1000 else f"{value_ms / 1e3:.1f} s"
