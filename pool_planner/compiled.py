"""[I/O] Hot paths as compiled code: the same sources through mypyc, kept in the user's cache. Optional everywhere.

Nothing is written twice: mypyc compiles the very modules that Python runs otherwise, so the results are the same (tests compare
them). What may be compiled together is a *set*: each package names its own. A build is keyed by its sources and those that they
import, the Python and the machine, so that a changed source is never run as it was.

A process uses one set at most, chosen before any of its modules is imported: `choose` takes the build if there is one for these
sources, and the plain modules otherwise. `build` needs a C compiler and the extra `fast` (mypy, setuptools).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("global_planner", "pool_planner", "router")
"""All that one installation has: a set's modules import from any of them."""
ENV_CHOICE = "PLANNER_COMPILED"
"""`auto` (as without it), `yes` or `no`: for the processes that a command starts."""
ENV_HOME = "PLANNER_COMPILED_HOME"
"""Where builds are kept, instead of the user's cache."""
BUILDS_KEPT = 4
"""Of each set, the last used: several checkouts share one cache."""
BUILD_LIMIT_S = 600.0
DAY_S = 86_400.0
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
"""Of compiled modules: it names the Python (3.11, say: its ABI), the machine and the system."""
_SETUP = """\
import sys
from setuptools import setup
from mypyc.build import mypycify
setup(name="fast", packages=[], ext_modules=mypycify(sys.argv.pop().split(","), opt_level="2", debug_level="0"))
"""
_MYPY = "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n"

_IMPORT = re.compile(rb"^\s*from ((?:global_planner|pool_planner|router)[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_WORD = re.compile(rb"\w+")

Choice = Literal["auto", "yes", "no"]


class CannotCompile(RuntimeError):
    """What is missing, or what the compiler said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledSet:
    """Modules that are compiled together. A module that others of the set use must be in it too, or it is called as Python."""

    name: str
    modules: tuple[str, ...]

    def folder(self) -> Path:
        """Where the compiled modules of these very sources are, or would be."""
        digest = hashlib.sha256(f"{SUFFIX}{','.join(self.modules)}".encode())
        for name, source in sorted(_closure(self.modules).items()):
            digest.update(name.encode())
            digest.update(source)
        return _home() / f"{self.name}-{digest.hexdigest()[:16]}"

    def sources(self) -> frozenset[str]:
        """The modules of the set and all of ours that they import, by name."""
        return frozenset(_closure(self.modules))

    def available(self) -> bool:
        return (self.folder() / "whole").exists()

    def build(self) -> bool:
        """Compile (about a minute), unless it is compiled by the mypy that is here; whether it was. Builds of other sources
        that nobody used lately are removed. Raises CannotCompile."""
        target = self.folder()
        for package in ("mypy", "setuptools"):
            if importlib.util.find_spec(package) is None:
                raise CannotCompile(f"{package} is not installed: pip install 'global-planner[fast]'")
        if shutil.which("cc") is None and shutil.which("gcc") is None:
            raise CannotCompile("there is no C compiler (cc)")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with (target.parent / f"{self.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                whole = target / "whole"
                if whole.exists() and whole.read_text() == _mypy_version():
                    return False
                self._compile(target)
                self._clean(target.parent)
        except OSError as error:
            raise CannotCompile(f"{target.parent}: {error.strerror}") from error
        return True

    def use(self) -> None:
        """Import the modules compiled from now on. Raises CannotCompile when they are not built, RuntimeError when it would
        come too late."""
        if not self.available():
            raise CannotCompile("not built for these sources yet")
        early = [name for name in self.modules if name in sys.modules]
        if early:
            raise RuntimeError(f"imported before: {', '.join(early)}")
        others = [finder.name for finder in sys.meta_path if isinstance(finder, _Finder)]
        if others:
            # Two builds of one module would not know each other's classes.
            raise RuntimeError(f"this process uses the compiled {others[0]} already")
        place = self.folder()
        sys.meta_path.insert(0, _Finder(self, place))
        with contextlib.suppress(OSError):  # somebody else's, or a read-only file system: then it is not cleaned either
            os.utime(place / "whole")

    def in_use(self) -> bool:
        """Whether the modules that run are the compiled ones."""
        first = sys.modules.get(self.modules[0])
        return first is not None and str(first.__file__).endswith(SUFFIX)

    def choose(self, wanted: Choice) -> str:
        """Use the build or not, and say so in a line for people. `auto`: if there is one; `yes`: it is built when there is
        none. Raises CannotCompile on `yes`."""
        if wanted == "no":
            return f"{self.name}: plain Python, as told"
        if self.in_use():
            return f"{self.name}: compiled ({self.folder()})"
        if wanted == "yes" and not self.available():
            self.build()
        try:
            self.use()
        except (CannotCompile, RuntimeError) as error:
            if wanted == "yes":
                raise CannotCompile(str(error)) from error
            return f"{self.name}: plain Python ({error}; global-planner compile builds it)"
        return f"{self.name}: compiled ({self.folder()})"

    def _compile(self, target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as place:
            work = Path(place)
            for package in PACKAGES:
                shutil.copytree(ROOT / package, work / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            (work / "setup.py").write_text(_SETUP)
            (work / "mypy.ini").write_text(_MYPY)
            # What mypy knows of the libraries is the same every time.
            words = [f"--cache-dir={target.parent / 'mypy'}", *(str(_source(name).relative_to(ROOT)) for name in self.modules)]
            command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", ",".join(words)]
            try:
                done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
            except subprocess.TimeoutExpired as error:
                raise CannotCompile(f"mypyc took longer than {BUILD_LIMIT_S:.0f} s") from error
            if self.folder() != target:
                raise CannotCompile("the sources were changed while they were compiled")
            if done.returncode != 0:
                raise CannotCompile(f"mypyc failed:\n{(done.stdout + done.stderr)[-2000:]}")
            result = work / "result"
            for built in [*work.glob("*.so"), *(path for package in PACKAGES for path in (work / package).rglob("*.so"))]:
                place_of = result / built.relative_to(work)
                place_of.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(built, place_of)
            (result / "whole").write_text(_mypy_version())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(result, target)

    def _clean(self, home: Path) -> None:
        builds = [path for path in home.glob(f"{self.name}-*") if (path / "whole").exists()]
        builds.sort(key=lambda path: (path / "whole").stat().st_mtime, reverse=True)
        broken = [path for path in home.glob("building-*") if time.time() - path.stat().st_mtime > DAY_S]
        for old in [*builds[BUILDS_KEPT:], *broken]:
            shutil.rmtree(old, ignore_errors=True)


def wanted() -> Choice:
    """What the environment says. Raises ValueError for a word that is none of the three."""
    word = os.environ.get(ENV_CHOICE, "auto")
    if word not in ("auto", "yes", "no"):
        raise ValueError(f"{ENV_CHOICE}={word}: must be auto, yes or no")
    return word  # type: ignore[return-value]


def tell_children(compiled: bool | None) -> Choice:
    """The choice of a `--compiled/--no-compiled` (None: neither was given), also for the processes that this one starts. Raises
    ValueError as `wanted` does."""
    if compiled is not None:
        os.environ[ENV_CHOICE] = "yes" if compiled else "no"
    return wanted()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the compiled modules, and mypyc's shared one beside them."""

    def __init__(self, chosen: CompiledSet, place: Path) -> None:
        self.name = chosen.name
        self._modules = frozenset(chosen.modules)
        self._place = place

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules and not name.endswith("__mypyc"):
            return None
        built = self._place / f"{name.replace('.', '/')}{SUFFIX}"
        return importlib.util.spec_from_file_location(name, built) if built.exists() else None


def _home() -> Path:
    if told := os.environ.get(ENV_HOME):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "global-planner"


def _closure(modules: Sequence[str]) -> dict[str, bytes]:
    """The sources of these modules and of all of ours that they import, by name: what a compiler takes from others (constants,
    types) must not be older than they are."""
    found: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = _source(name)
        if not path.exists():
            continue  # a package, or a name in a module
        found[name] = source = path.read_bytes()
        for package, names in _IMPORT.findall(source):
            waiting.append(package.decode())
            waiting.extend(f"{package.decode()}.{word.decode()}" for word in _WORD.findall(names))
    return found


def _source(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"


def _mypy_version() -> str:
    try:
        return version("mypy")
    except PackageNotFoundError:
        return ""
