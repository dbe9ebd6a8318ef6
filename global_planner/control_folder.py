"""[I/O] What operators set at run time, as small JSON files in a folder: freeze, approvals, overrides, schedules.

One file for each thing that can be set, written whole and renamed into place, so that commands need no lock and work while
the arbiter is down. A file that cannot be read counts as unreadable, not as absent: whoever reads the folder has to stop,
because the file could have said so.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from global_planner import types
from global_planner.ports import Controls
from global_planner.types import Approval, Freeze, Override, Schedule
from pool_planner import wire
from pool_planner.types import ClusterUnavailable

wire.register_module(types)  # the files are validated by the codec's rules: nothing unknown, nothing missing

_Record = TypeVar("_Record")

_FREEZE: TypeAdapter[Freeze] = TypeAdapter(Freeze)
_APPROVAL: TypeAdapter[Approval] = TypeAdapter(Approval)
_OVERRIDE: TypeAdapter[Override] = TypeAdapter(Override)
_SCHEDULE: TypeAdapter[Schedule] = TypeAdapter(Schedule)


class ControlFolder:
    """The folder of one deployment. Implements the port `Operators`; the other methods are those of the command line.

    Raises ClusterUnavailable when the folder cannot be read or written, with the file's name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def controls(self) -> Controls:
        return self.read()

    def read(self) -> Controls:
        """Everything that is set, expired things included: rounds look at the time, this does not."""
        freeze = next(self._each("freeze", _FREEZE), None)
        return Controls(
            freeze=freeze,
            approvals=tuple(self._each("approval-*", _APPROVAL)),
            overrides=tuple(self._each("override-*", _OVERRIDE)),
            schedules=tuple(self._each("schedule-*", _SCHEDULE)),
        )

    def freeze(self, freeze: Freeze) -> None:
        """Stop all writes, from now until `unfreeze`."""
        self._put("freeze", _FREEZE.dump_json(freeze, indent=1))

    def unfreeze(self) -> bool:
        """Whether there was a freeze to take back."""
        return self._remove("freeze")

    def decide(self, approval: Approval) -> None:
        """Approve or refuse what a pool was granted; the newest word on a pool is the one that counts."""
        self._put(f"approval-{approval.pool}", _APPROVAL.dump_json(approval, indent=1))

    def override(self, override: Override) -> None:
        """Pin, cap or hold a pool; each of the three can be set beside the others."""
        self._put(f"override-{override.pool}-{override.kind}", _OVERRIDE.dump_json(override, indent=1))

    def withdraw(self, pool: str, kind: str) -> bool:
        """Whether there was an override of that kind to take back."""
        return self._remove(f"override-{pool}-{kind}")

    def schedule(self, schedule: Schedule) -> None:
        """Set a known event; one of the same name is replaced."""
        self._put(f"schedule-{schedule.name}", _SCHEDULE.dump_json(schedule, indent=1))

    def unschedule(self, name: str) -> bool:
        """Whether there was a schedule of that name to take back."""
        return self._remove(f"schedule-{name}")

    def drop_expired(self, now_s: float) -> None:
        """Remove approvals and overrides whose time is over."""
        controls = self.read()
        for approval in controls.approvals:
            if approval.expires_at_s <= now_s:
                self._remove(f"approval-{approval.pool}")
        for override in controls.overrides:
            if override.expires_at_s is not None and override.expires_at_s <= now_s:
                self.withdraw(override.pool, override.kind)

    def _each(self, pattern: str, adapter: TypeAdapter[_Record]) -> Iterator[_Record]:
        for path in sorted(self._directory.glob(f"{pattern}.json")):
            try:
                yield adapter.validate_json(path.read_bytes())
            except FileNotFoundError:  # taken back since it was listed
                continue
            except OSError as error:
                raise ClusterUnavailable(f"{path}: {error.strerror or error}") from error
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"]) or "the file"
                raise ClusterUnavailable(f"{path}: {where}: {first['msg']}") from error

    def _put(self, name: str, content: bytes) -> None:
        path = self._directory / f"{name}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".", delete=False) as file:
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, path)
        except OSError as error:
            raise ClusterUnavailable(f"{path} cannot be written: {error.strerror or error}") from error

    def _remove(self, name: str) -> bool:
        path = self._directory / f"{name}.json"
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ClusterUnavailable(f"{path} cannot be removed: {error.strerror or error}") from error
        return True
