"""[I/O: stdout] Sentences and tables on a terminal as wide as it is, and plain columns in a pipe.

A table that a terminal is too narrow for is told row by row, so that no cell is cut.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from global_planner.explain import Part, Table, plain

LONGEST_WORD = 28
"""Width at which a cell of sentences may still be set in lines of its own."""


def show(parts: Iterable[Part], out: TextIO | None = None) -> None:
    """Write a page to stdout."""
    out = out or sys.stdout
    if not out.isatty():
        out.write(plain(parts) + "\n")
        return
    console = Console(file=out, highlight=False, width=shutil.get_terminal_size().columns)
    for number, part in enumerate(parts):
        if number:
            console.print()
        if isinstance(part, str):
            console.print(wrapped(part, console.width), markup=False, soft_wrap=True)
        elif fits(part, console.width):
            console.print(Text(part.title, style="bold"))
            console.print(_rich(part))
        else:
            console.print(wrapped(records(part), console.width), markup=False, soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """Lines broken between words; what follows a break is indented beyond its line."""
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, max(20, width), initial_indent="", subsequent_indent=f"{indent}  ", break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def fits(table: Table, width: int) -> bool:
    """Whether each column can have the room that its cells need, long sentences set in several lines."""
    needed = sum(min(LONGEST_WORD, _widest(table, column)) for column in range(len(table.columns)))
    return needed + 2 * len(table.columns) <= width


def records(table: Table) -> str:
    """The table row by row: the first cell, and below it what the others say."""
    lines = [table.title]
    for first, *others in table.rows:
        lines.append(f"  {first}")
        lines += [f"    {name}: {cell}" for name, cell in zip(table.columns[1:], others, strict=True) if cell]
    return "\n".join(lines)


def _widest(table: Table, column: int) -> int:
    return max(len(cells[column]) for cells in (table.columns, *table.rows))


def _rich(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for column, name in enumerate(table.columns):
        short = _widest(table, column) <= LONGEST_WORD
        cells = [row[column] for row in table.rows]
        drawn.add_column(name, no_wrap=short, justify="right" if _numbers(cells) else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def _numbers(cells: list[str]) -> bool:
    return any(cells) and all(not cell or cell[0].isdigit() or cell[0] in "+-?" for cell in cells)
