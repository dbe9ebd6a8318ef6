"""[I/O] Reading a topology file, YAML or JSON, with the profile directories that it names; every problem told at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from global_planner.config import Topology
from global_planner.topology_checks import check
from global_planner.topology_draft import Draft, Problem, draft_of, read_draft
from pool_planner.performance.profile import Profile, ProfileError, load_profile


class TopologyError(ValueError):
    """A topology that cannot be used. `problems`: one line each, `FILE: path: what is wrong and what is allowed`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_topology(path: Path | str) -> Topology:
    """The topology in a file, its profile paths made absolute. Raises TopologyError with every problem."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError((f"{path}: cannot be read: {error}",)) from error
    return parse_topology(text, source=str(path), folder=path.parent)


def parse_topology(text: str, *, source: str, folder: Path, with_profiles: bool = True) -> Topology:
    """The topology in a YAML or JSON text; relative profile paths count from `folder`. Raises TopologyError. `with_profiles`
    false: they are not looked at, for whoever needs the pools' names and not what they can do: somebody who has to stop a
    deployment may have its topology alone."""
    raw = _mapping(text, source)
    topology, draft, problems = read_draft(raw)
    profiles = _load_profiles(draft, folder, problems) if with_profiles else {}
    problems += check(draft, profiles)
    if topology is None or problems:
        raise TopologyError(tuple(f"{source}: {problem}" for problem in problems))
    groups = tuple(
        group.model_copy(
            update={
                "pools": tuple(
                    pool.model_copy(update={"profile": str((folder / pool.profile).resolve())}) for pool in group.pools
                )
            }
        )
        for group in topology.groups
    )
    return topology.model_copy(update={"groups": groups})


def load_profiles(topology: Topology) -> Mapping[str, Profile]:
    """[I/O] The profile of every pool, by pool name. Raises TopologyError when a directory has changed since the topology
    was read."""
    problems: list[Problem] = []
    draft = draft_of(topology)
    by_path = _load_profiles(draft, Path(), problems)
    if problems:
        raise TopologyError(tuple(f"{topology.name}: {problem}" for problem in problems))
    return {pool.config.name: by_path[pool.path] for _, pool in draft.pools()}


def with_budget(topology: Topology, gpus: int | Mapping[str, int]) -> Topology:
    """The same deployment under another budget: of its only GPU type, or by type. Raises TopologyError when the minima no
    longer fit, or the type is not clear."""
    types = list(topology.budget.gpus)
    if isinstance(gpus, int):
        if len(types) > 1:
            text = f"a budget of {gpus} GPUs: of which type? (has: {', '.join(sorted(types))})"
            raise TopologyError((f"{topology.name}: {text}",))
        gpus = {types[0]: gpus}
    problems = [
        Problem(path=f"budget.gpus.{name}", text=f"not in budget.gpus (has: {', '.join(sorted(types))})")
        for name in gpus
        if name not in types
    ]
    problems += [
        Problem(path=f"budget.gpus.{name}.max", text=f"{count}: must be greater than 0")
        for name, count in gpus.items()
        if count < 1
    ]
    changed = {
        name: budget.model_copy(update={"max": gpus[name]}) if name in gpus else budget
        for name, budget in topology.budget.gpus.items()
    }
    changed_topology = topology.model_copy(update={"budget": topology.budget.model_copy(update={"gpus": changed})})
    problems += check(draft_of(changed_topology), {})
    if problems:
        raise TopologyError(tuple(f"{topology.name}: {problem}" for problem in problems))
    return changed_topology


def _load_profiles(draft: Draft, folder: Path, problems: list[Problem]) -> Mapping[str, Profile]:
    """Profiles by the path of their pool; each directory is read once, and told of once for every pool that names it."""
    read: dict[Path, Profile | ProfileError] = {}
    profiles: dict[str, Profile] = {}
    for _, pool in draft.pools():
        if not pool.knows("profile"):
            continue
        where = f"{pool.path}.profile"
        directory = (folder / pool.config.profile).resolve()
        if not directory.is_dir():
            problems.append(Problem(path=where, text=f"{pool.config.profile!r} is not a directory ({directory})"))
            continue
        if directory not in read:
            try:
                read[directory] = load_profile(directory)
            except ProfileError as error:
                read[directory] = error
        found = read[directory]
        if isinstance(found, ProfileError):
            problems.append(Problem(path=where, text=str(found)))
        else:
            profiles[pool.path] = found
    return profiles


# ---- text to mapping -----------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once only: the second of two pools' settings must not silently replace the first."""


def _mapping_once(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice in one mapping", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_once)


def _object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return seen


def _mapping(text: str, source: str) -> Mapping[str, Any]:
    try:
        if text.lstrip().startswith("{"):
            raw = json.loads(text, object_pairs_hook=_object_once)
        else:
            raw = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise TopologyError((f"{source}{line}: not YAML: {error.problem}",)) from error
    except json.JSONDecodeError as error:
        raise TopologyError((f"{source}:{error.lineno}:{error.colno}: not JSON: {error.msg}",)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TopologyError((f"{source}: not YAML or JSON: {error}",)) from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise TopologyError((f"{source}: must be a mapping with the keys {', '.join(Topology.model_fields)}",))
    return raw
