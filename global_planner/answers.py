"""[I/O: reads a journal] What the command line answers from a journal: explain, compare, check. Nothing is changed.

Raises KeyError (no such round or pool), FileNotFoundError (no journal), JournalCorrupt and OtherVersion; their texts are made
to be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from global_planner.compare import compare, comparison_table
from global_planner.explain import Part, explain_history, explain_pool, pick_round, round_parts
from global_planner.journal_reader import read, segments
from global_planner.memory import Decided, decided
from global_planner.priority_price import price_of_priority, price_table
from global_planner.replay.check import check
from global_planner.types import Round


def explain(
    directory: Path, *, number: int | None = None, pool: str | None = None, price_of_priorities: bool = False
) -> tuple[Part, ...]:
    """Why round `number` (None: the last) decided what it did, for everybody or for one pool. For a pool without a number: how
    it came to where it is. `price_of_priorities` adds who would gain what with equal ones."""
    if price_of_priorities:
        found = _decided(directory, number)
        prices = price_table(price_of_priority(found.done, found.memory, found.policies))
        told = round_parts(found.done) if pool is None else (explain_pool(found.done, pool),)
        return (*told, prices)
    rounds = list(_rounds(directory))
    done = pick_round(rounds, number)
    if pool is None:
        return round_parts(done)
    told_of_pool = explain_pool(done, pool)
    return (told_of_pool,) if number is not None else (told_of_pool, explain_history(rounds, pool))


def compare_watched(directory: Path) -> tuple[Part, ...]:
    """What the cluster did over the journal's time, and what we would have done."""
    return (
        comparison_table(compare(_rounds(directory))),
        "What we would have done counts from each decision on, without the cold start that it takes. Attainment is what the\n"
        "pools' own demand curves say of either number of replicas, not a measurement.",
    )


def check_again(directory: Path, *, other_version: bool = False) -> tuple[bool, str]:
    """Whether every recorded decision is made again exactly, and the sentences to show."""
    result = check(directory, other_version=other_version)
    lines = [f"{result.rounds} rounds of {result.segments} segments were decided again."]
    if result.reproduced:
        lines.append("Every allocation and every step came out as recorded.")
    elif other_version:
        lines += result.changes
        alike = len(result.differences) - result.changed
        more = f", and {alike} more would be told or remembered in other words" if alike else ""
        lines.append(f"{result.changed} of {result.rounds} rounds would be decided differently{more}.")
    else:
        lines += [str(difference) for difference in result.differences]
    return result.reproduced, "\n".join([*lines, *result.notes])


def _rounds(directory: Path) -> Iterator[Round]:
    if not segments(directory):
        raise FileNotFoundError(f"{directory}: there is no journal here")
    return (record for record in read(directory) if isinstance(record, Round))


def _decided(directory: Path, number: int | None) -> Decided:
    found: Decided | None = None
    for item in decided(read(directory)):
        found = item
        if item.done.inputs.round_no == number:
            break
    if found is None or number not in (None, found.done.inputs.round_no):
        wanted = "a round" if number is None else f"round {number}"
        raise KeyError(f"{directory}: the journal does not hold {wanted} with the memory before it")
    return found
