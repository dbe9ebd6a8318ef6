"""[I/O] What operators set at run time, as small JSON files in a folder: freeze, approvals, overrides, schedules, custody.

One file for each thing that can be set, written whole and renamed into place, so that commands need no lock and work while
the arbiter is down. What the records are is `control_store`'s.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from global_planner.control_store import ControlStore
from global_planner.ports import Controls
from pool_planner.types import ClusterUnavailable


class ControlFolder(ControlStore):
    """The folder of one deployment. Implements the port `Operators`; the other methods are those of the command line.

    Raises ClusterUnavailable when the folder cannot be read or written, with the file's name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def controls(self) -> Controls:
        return self.read()

    def texts(self) -> Iterator[tuple[str, str, bytes]]:
        for path in sorted(self._directory.glob("*.json")):
            if path.name.startswith("."):
                continue
            try:
                yield path.stem, str(path), path.read_bytes()
            except FileNotFoundError:  # taken back since it was listed
                continue
            except OSError as error:
                raise ClusterUnavailable(f"{path}: {error.strerror or error}") from error

    def put(self, name: str, content: bytes) -> None:
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

    def remove(self, name: str) -> bool:
        path = self._directory / f"{name}.json"
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ClusterUnavailable(f"{path} cannot be removed: {error.strerror or error}") from error
        return True
