"""The golden journal: a small committed run that today's code must decide as it did. To accept another decision on purpose:

    python -m tests.journal.golden

and review the difference that `test_golden` printed before.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.journal.records import AtWork

GOLDEN = Path(__file__).parent / "golden"
WANTED = (
    (2, 1, 1, 0, 0),
    (2, 1, 1, 0, 0),
    (2, 2, 1, 0, 1),
    (3, 3, 1, 0, 1),
    (3, 3, 2, 2, 2),
    (3, 3, 2, 2, 2),
    (1, 1, 3, 3, 1),
    (1, 1, 3, 3, 1),
    (1, 1, 3, 3, 1),
    (1, 1, 3, 3, 1),
    (1, 1, 3, 3, 0),
    (1, 1, 3, 3, 0),
)


def record(directory: Path) -> None:
    """A run with contention, lost and late writes, a hand edit, a failing router and a restart, under the real arbiter."""
    work = AtWork(directory)
    work.rounds(*WANTED[:3])
    work.world.faults = ["late", "lost"]
    work.rounds(*WANTED[3:6])
    work.world.people_set("chat-prefill", 4)
    work.restart()
    work.rounds(*WANTED[6:8])
    work.world.routers[0].up = False
    work.rounds(*WANTED[8:9])
    work.world.routers[0].up = True
    work.rounds(*WANTED[9:], *[WANTED[-1]] * 8)
    work.journal.close()
    (directory / "writer.lock").unlink()


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    record(GOLDEN)
