"""[I/O] The arbiter's rounds in real time: one after the other, sooner when somebody hurries, until it is another's turn.

It knows nothing of Ray: the actor gives it ports and says whose turn it is, and the API asks it what was decided.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable

from global_planner.inbox import Inbox
from global_planner.memory import PlannerMemory
from global_planner.planner_grants import grants_of
from global_planner.round import HURRIED_SHARE, Ports, RoundConfig, run_round
from global_planner.types import Round
from global_planner.woken import at_zero
from pool_planner.clock import SpeedClock
from pool_planner.types import Grant

LOOK_WALL_S = 0.2
"""How often it is looked whether it is (still) this arbiter's turn."""


class ArbiterLoop:
    """Implements `api.Arbiter`. `last_round` and `inbox` may be read from other threads; the rest belongs to one event loop."""

    def __init__(self, inbox: Inbox, clock: SpeedClock, *, interval_s: float) -> None:
        self._inbox = inbox
        self._clock = clock
        self._interval_s = interval_s
        self._hurried = asyncio.Event()
        self._done = asyncio.Condition()
        self._last_round: Round | None = None
        self._leading = False

    @property
    def inbox(self) -> Inbox:
        return self._inbox

    @property
    def last_round(self) -> Round | None:
        return self._last_round

    @property
    def leading(self) -> bool:
        return self._leading

    def now(self) -> float:
        return self._clock.now()

    def grants(self, pools: Iterable[str]) -> tuple[Grant, ...]:
        """As of the last round; none at all while another arbiter decides, which is then asked."""
        return grants_of(self._last_round, pools, self._clock.now()) if self._leading else ()

    def hurry(self) -> None:
        self._hurried.set()

    async def round_after(self, round_no: int, within_s: float) -> Round | None:
        def there() -> bool:
            return self._last_round is not None and self._last_round.inputs.round_no > round_no

        async with self._done:
            try:
                await asyncio.wait_for(self._done.wait_for(there), within_s)
            except TimeoutError:
                return None
        return self._last_round

    async def run(
        self,
        ports: Ports,
        memory: PlannerMemory,
        config: RoundConfig,
        ours: Callable[[], bool],
        *,
        may_decide: Callable[[], Awaitable[bool]] | None = None,
        tell: Callable[[Round], None] | None = None,
    ) -> None:
        """Rounds while `ours` says so, which is asked between two of them. `may_decide` is asked before each: while it says no,
        another process decides, and none is done. `tell` is told of each."""
        written = 0.0
        # Cycles are looked for between rounds, never in one; what stands now (modules, topology) is never looked at again.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while True:
                begun = self._clock.now()
                self._hurried.clear()
                self._leading = may_decide is None or await may_decide()
                if not self._leading:
                    if not await self._until_next(begun, ours):
                        return
                    continue
                self._inbox.at(begun, at_zero(self._last_round))
                memory, self._last_round = await run_round(ports, memory, config, timer=time.perf_counter)
                async with self._done:
                    self._done.notify_all()
                if tell is not None:
                    tell(self._last_round)
                statuses = self._inbox.statuses()
                for status in statuses:
                    if status.at_s > written:
                        ports.journal.append(status)
                written = max([written, *(status.at_s for status in statuses)])
                gc.collect()
                if not await self._until_next(begun, ours):
                    return
        finally:
            self._leading = False
            gc.enable()

    async def _until_next(self, begun_s: float, ours: Callable[[], bool]) -> bool:
        """Wait until the next round is due; False: it is another arbiter's."""
        while ours():
            due_s = self._interval_s * (HURRIED_SHARE if self._hurried.is_set() else 1.0)
            left_s = begun_s + due_s - self._clock.now()
            if left_s <= 0.0:
                return True
            wait_s = min(LOOK_WALL_S, self._clock.wall(left_s))
            if self._hurried.is_set():
                await asyncio.sleep(wait_s)
                continue
            try:
                await asyncio.wait_for(self._hurried.wait(), wait_s)
            except TimeoutError:
                continue
        return False
