"""[I/O] The hot path of a replay as compiled code: the same sources through mypyc, kept in the user's cache. Optional.

Nothing is written twice: mypyc compiles the very modules that Python runs otherwise, so the results are the same to the byte
(a test compares them). The cache is keyed by the sources, the versions and the machine, so that a changed source is never run
as it was.

`use` must come before any of the modules is imported; `build` needs a C compiler and the extra `fast` (mypy, setuptools).
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "global_planner.replay.engine",
    "global_planner.replay.engine_cost",
    "global_planner.replay.engine_decode",
    "global_planner.replay.engine_schedule",
    "global_planner.replay.engine_spec",
    "global_planner.replay.least_loaded",
    "global_planner.replay.stations",
    "global_planner.replay.lanes",
    "global_planner.replay.ways",
    "global_planner.replay.dispatch",
    "global_planner.replay.scores",
    "global_planner.replay.simulator",
    "pool_planner.performance.interpolation",
    "router.admission",
    "router.policy",
)
PACKAGES = ("global_planner", "pool_planner", "router")
BUILD_LIMIT_S = 600.0
_SETUP = """\
import sys
from setuptools import setup
from mypyc.build import mypycify
setup(name="fast", packages=[], ext_modules=mypycify(sys.argv.pop().split(","), opt_level="3"))
"""
_MYPY = "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n"


class CannotCompile(RuntimeError):
    """What is missing, or what the compiler said."""


def folder() -> Path:
    """Where the compiled modules of these very sources are, or would be."""
    digest = hashlib.sha256(f"{sys.version}{platform.machine()}{_mypy_version()}".encode())
    for name in MODULES:
        digest.update(_source(name).read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "global-planner" / f"replay-{digest.hexdigest()[:16]}"


def available() -> bool:
    return (folder() / "whole").exists()


def build() -> None:
    """Compile what is not compiled yet (half a minute). Raises CannotCompile."""
    if available():
        return
    for package in ("mypy", "setuptools"):
        if importlib.util.find_spec(package) is None:
            raise CannotCompile(f"{package} is not installed: pip install 'global-planner[fast]'")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        raise CannotCompile("there is no C compiler (cc)")
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as place:
        work = Path(place)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, work / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        (work / "setup.py").write_text(_SETUP)
        (work / "mypy.ini").write_text(_MYPY)
        files = ",".join(str(_source(name).relative_to(ROOT)) for name in MODULES)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", files]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
        if done.returncode != 0:
            raise CannotCompile(f"mypyc failed:\n{(done.stdout + done.stderr)[-2000:]}")
        result = work / "result"
        for built in [*work.glob("*.so"), *(path for package in PACKAGES for path in (work / package).rglob("*.so"))]:
            place_of = result / built.relative_to(work)
            place_of.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(built, place_of)
        (result / "whole").touch()
        shutil.rmtree(target, ignore_errors=True)
        os.replace(result, target)


def use() -> None:
    """Import the modules compiled from now on. Raises CannotCompile when they are not built, RuntimeError when one was imported
    already."""
    if not available():
        raise CannotCompile("not built for these sources yet")
    early = [name for name in MODULES if name in sys.modules]
    if early:
        raise RuntimeError(f"imported before: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(folder()))


def in_use() -> bool:
    """Whether the engine that runs is the compiled one."""
    engine = sys.modules.get(MODULES[0])
    return engine is not None and str(engine.__file__).endswith(".so")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the compiled modules, and mypyc's shared one beside them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MODULES and not name.endswith("__mypyc"):
            return None
        built = self._place / f"{name.replace('.', '/')}{self._suffix}"
        return importlib.util.spec_from_file_location(name, built) if built.exists() else None


def _source(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"


def _mypy_version() -> str:
    try:
        return version("mypy")
    except PackageNotFoundError:
        return ""
