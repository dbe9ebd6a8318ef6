"""The journal of a replay: kept on disk where asked, and read along for what a report tells of each moment. Pure: the disk is
a port."""

from __future__ import annotations

from global_planner.demo.report import DONE, Decision, orders
from global_planner.ports import Journal
from global_planner.types import Round

MOST = 20_000  # decisions that are kept in memory; a report shows fewer


class Reasons:
    """Passes records on to `kept` (None: nowhere), and notes orders and changed grants."""

    def __init__(self, policy: str, kept: Journal | None) -> None:
        self.rows: list[Decision] = []
        self._policy = policy
        self._kept = kept
        self._told: dict[str, tuple[int | None, str]] = {}

    def append(self, record: object) -> None:
        if self._kept is not None:
            self._kept.append(record)
        if not isinstance(record, Round) or len(self.rows) >= MOST:
            return
        told = [order._replace(kind=f"{self._policy}: {order.kind}") for order in orders([record], 0.0)]
        ordered = {(order.pool, order.change) for order in told}  # a grant that is carried out at once is one event
        for grant in record.allocation.pools:
            now = (grant.granted, grant.reason)
            before = self._told.get(grant.pool, (grant.before, ""))[0]
            change = f"{'?' if grant.before is None else grant.before} → {grant.granted}"
            if before != grant.granted and (grant.pool, change) not in ordered:
                self.rows.append(
                    Decision(
                        at_s=record.inputs.at_s,
                        round_no=record.inputs.round_no,
                        pool=grant.pool,
                        kind=f"{self._policy}: granted",
                        change=change,
                        reason=grant.reason,
                        became=DONE,
                    )
                )
            self._told[grant.pool] = now
        self.rows += told
