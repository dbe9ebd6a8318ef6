"""What operators set at run time, one named record for each thing; where the records are kept is another matter. Pure.

`freeze`, `approval-POOL`, `override-POOL-KIND`, `schedule-NAME`, `custody-POOL`. A record that cannot be read counts as
unreadable, not as absent: whoever reads has to stop, because the record could have said so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from global_planner import types
from global_planner.ports import Controls
from global_planner.types import Approval, Custody, Freeze, Override, Schedule
from pool_planner import wire
from pool_planner.types import ClusterUnavailable

wire.register_module(types)  # the records are validated by the codec's rules: nothing unknown, nothing missing

_Record = TypeVar("_Record")

_FREEZE: TypeAdapter[Freeze] = TypeAdapter(Freeze)
_APPROVAL: TypeAdapter[Approval] = TypeAdapter(Approval)
_OVERRIDE: TypeAdapter[Override] = TypeAdapter(Override)
_SCHEDULE: TypeAdapter[Schedule] = TypeAdapter(Schedule)
_CUSTODY: TypeAdapter[Custody] = TypeAdapter(Custody)


class ControlStore(ABC):
    """The records of one deployment, as JSON texts by name. Every method raises ClusterUnavailable when they cannot be read or
    written, with the place of the one that is wrong."""

    @abstractmethod
    def texts(self) -> Iterator[tuple[str, str, bytes]]:
        """(name, place for error texts, JSON) of every record, in the order of the names."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Write a record whole, replacing one of its name."""

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Whether there was one to remove."""

    def read(self) -> Controls:
        """Everything that is set, expired things included: rounds look at the time, this does not."""
        texts = list(self.texts())
        return Controls(
            freeze=next(_read(texts, "freeze", _FREEZE), None),
            approvals=tuple(_read(texts, "approval-*", _APPROVAL)),
            overrides=tuple(_read(texts, "override-*", _OVERRIDE)),
            schedules=tuple(_read(texts, "schedule-*", _SCHEDULE)),
            custody=tuple(_read(texts, "custody-*", _CUSTODY)),
        )

    def freeze(self, freeze: Freeze) -> None:
        """Stop all writes, from now until `unfreeze`."""
        self.put("freeze", _FREEZE.dump_json(freeze, indent=1))

    def unfreeze(self) -> bool:
        """Whether there was a freeze to take back."""
        return self.remove("freeze")

    def decide(self, approval: Approval) -> None:
        """Approve or refuse what a pool was granted; the newest word on a pool is the one that counts."""
        self.put(f"approval-{approval.pool}", _APPROVAL.dump_json(approval, indent=1))

    def override(self, override: Override) -> None:
        """Pin, cap or hold a pool; each of the three can be set beside the others."""
        self.put(f"override-{override.pool}-{override.kind}", _OVERRIDE.dump_json(override, indent=1))

    def withdraw(self, pool: str, kind: str) -> bool:
        """Whether there was an override of that kind to take back."""
        return self.remove(f"override-{pool}-{kind}")

    def schedule(self, schedule: Schedule) -> None:
        """Set a known event; one of the same name is replaced."""
        self.put(f"schedule-{schedule.name}", _SCHEDULE.dump_json(schedule, indent=1))

    def unschedule(self, name: str) -> bool:
        """Whether there was a schedule of that name to take back."""
        return self.remove(f"schedule-{name}")

    def drop_expired(self, now_s: float) -> None:
        """Remove approvals and overrides whose time is over."""
        controls = self.read()
        for approval in controls.approvals:
            if approval.expires_at_s <= now_s:
                self.remove(f"approval-{approval.pool}")
        for override in controls.overrides:
            if override.expires_at_s is not None and override.expires_at_s <= now_s:
                self.withdraw(override.pool, override.kind)

    def take(self, custody: Custody) -> None:
        """Adopt a pool, or hand it back; the newest word on a pool is the one that counts."""
        self.put(f"custody-{custody.pool}", _CUSTODY.dump_json(custody, indent=1))


def _read(texts: list[tuple[str, str, bytes]], pattern: str, adapter: TypeAdapter[_Record]) -> Iterator[_Record]:
    for name, place, content in texts:
        if not fnmatchcase(name, pattern):
            continue
        try:
            yield adapter.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ClusterUnavailable(f"{place}: {where}: {first['msg']}") from error
