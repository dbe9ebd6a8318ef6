"""A topology as it was written, right or wrong: typed sections plus the names of the fields that cannot be trusted. Pure.

The file's problems are to be told all at once, those of single fields together with those between sections. So a broken
field is replaced by a stand-in and remembered as broken; a check between sections looks only at fields that it can trust.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from global_planner.config import (
    ApiConfig,
    ArbiterConfig,
    ClusterConfig,
    GpuBudget,
    GroupConfig,
    LimitConfig,
    PoolConfig,
    RouterConfig,
    Sla,
    Topology,
)
from global_planner.config_base import Section
from global_planner.config_rules import OverrideConfig, ScheduleConfig, ScheduleValues, SelectorConfig, SelectorValues

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`path` as in `groups[0].pools[1].gpu_type`; "" is the whole file."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def once(seen: dict[str, str], name: str, path: str, what: str, *, key: Callable[[str], str] = str) -> Iterator[Problem]:
    """A problem where a name of `seen` (to its path) comes a second time; `what` is named like that."""
    if key(name) in seen:
        yield Problem(path=path, text=f"{name!r} is {what} already, at {seen[key(name)]}")
    seen.setdefault(key(name), path)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPool:
    path: str
    config: PoolConfig
    broken: frozenset[str] = frozenset()

    def knows(self, *fields: str) -> bool:
        return self.broken.isdisjoint(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftGroup:
    """`config.pools` is not to be read: `pools` is."""

    path: str
    config: GroupConfig
    pools: tuple[DraftPool, ...]
    broken: frozenset[str] = frozenset()

    def knows(self, *fields: str) -> bool:
        return self.broken.isdisjoint(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRule(Generic[SectionT]):
    """A limit, a selector, a schedule or an override."""

    path: str
    config: SectionT
    broken: frozenset[str] = frozenset()

    def knows(self, *fields: str) -> bool:
        return self.broken.isdisjoint(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """`gpus` None: the budget cannot be read; a type whose budget cannot be read is None in it. `cluster`, `arbiter`, `router`
    None: broken."""

    gpus: Mapping[str, GpuBudget | None] | None
    cluster: ClusterConfig | None
    arbiter: ArbiterConfig | None
    router: RouterConfig | None
    groups: tuple[DraftGroup, ...]
    planner: Mapping[str, Any]
    api: ApiConfig | None = None
    limits: tuple[DraftRule[LimitConfig], ...] = ()
    selectors: tuple[DraftRule[SelectorConfig], ...] = ()
    schedules: tuple[DraftRule[ScheduleConfig], ...] = ()
    overrides: tuple[DraftRule[OverrideConfig], ...] = ()

    def pools(self) -> tuple[tuple[DraftGroup, DraftPool], ...]:
        return tuple((group, pool) for group in self.groups for pool in group.pools)


# Stand-ins of required fields, so that a section with a broken one can still be looked at.
_POOL_STAND_IN: Mapping[str, Any] = {"name": "unknown", "role": "agg", "gpu_type": "", "profile": ""}
_SELECTOR_STAND_IN: Mapping[str, Any] = {"name": "unknown", "set": SelectorValues()}
_SCHEDULE_STAND_IN: Mapping[str, Any] = {"name": "unknown", "start": "00:00", "duration_s": 1.0, "set": ScheduleValues()}
_GROUP_STAND_IN: Mapping[str, Any] = {"name": "unknown", "model": "unknown", "sla": Sla(ttft_ms=1.0, itl_ms=1.0)}


def draft_of(topology: Topology) -> Draft:
    """The draft of a topology whose single fields are all right."""
    groups = tuple(
        DraftGroup(
            path=f"groups[{g}]",
            config=group,
            pools=tuple(DraftPool(path=f"groups[{g}].pools[{p}]", config=pool) for p, pool in enumerate(group.pools)),
        )
        for g, group in enumerate(topology.groups)
    )
    return Draft(
        gpus=topology.budget.gpus,
        cluster=topology.cluster,
        arbiter=topology.arbiter,
        router=topology.router,
        api=topology.api,
        groups=groups,
        planner=topology.planner,
        limits=_rules("budget.limits", topology.budget.limits),
        selectors=_rules("selectors", topology.selectors),
        schedules=_rules("schedules", topology.schedules),
        overrides=_rules("overrides", topology.overrides),
    )


def _rules(path: str, configs: Sequence[SectionT]) -> tuple[DraftRule[SectionT], ...]:
    return tuple(DraftRule(path=f"{path}[{index}]", config=config) for index, config in enumerate(configs))


def read_draft(raw: Mapping[str, Any]) -> tuple[Topology | None, Draft, list[Problem]]:
    """The topology in `raw` (None when a field of it is wrong), its draft, and the problems of single fields."""
    try:
        topology = Topology.model_validate(raw)
    except ValidationError as error:
        return None, _lenient(raw), _problems(error)
    return topology, draft_of(topology), []


def _lenient(raw: Mapping[str, Any]) -> Draft:
    groups = []
    for g, raw_group in enumerate(_items(raw.get("groups"))):
        path = f"groups[{g}]"
        raw_pools = raw_group.get("pools") if isinstance(raw_group, Mapping) else None
        pools = []
        for p, raw_pool in enumerate(_items(raw_pools)):
            pool, broken = _patched(PoolConfig, raw_pool, _POOL_STAND_IN)
            pools.append(DraftPool(path=f"{path}.pools[{p}]", config=pool, broken=broken))
        # The group's own fields only: its pools were read one by one, so that one of them cannot spoil the others.
        own = {**raw_group, "pools": [_POOL_STAND_IN]} if isinstance(raw_group, Mapping) else None
        group, broken = _patched(GroupConfig, own, {**_GROUP_STAND_IN, "pools": [_POOL_STAND_IN]})
        if not isinstance(raw_pools, list | tuple):
            broken |= {"pools"}
        groups.append(DraftGroup(path=path, config=group, pools=tuple(pools), broken=broken))
    router, broken_router = _patched(RouterConfig, raw.get("router", {}), {})
    api, broken_api = _patched(ApiConfig, raw.get("api", {}), {})
    cluster, broken_cluster = _patched(ClusterConfig, raw.get("cluster", {}), {})
    arbiter, broken_arbiter = _patched(ArbiterConfig, raw.get("arbiter", {}), {})
    planner, budget = raw.get("planner", {}), raw.get("budget")
    limits = budget.get("limits") if isinstance(budget, Mapping) else None
    return Draft(
        gpus=_lenient_gpus(budget),
        cluster=None if broken_cluster else cluster,
        arbiter=None if broken_arbiter else arbiter,
        router=None if broken_router else router,
        api=None if broken_api else api,
        groups=tuple(groups),
        planner=planner if isinstance(planner, Mapping) else {},
        limits=_lenient_rules(LimitConfig, "budget.limits", limits, {"name": "unknown"}),
        selectors=_lenient_rules(SelectorConfig, "selectors", raw.get("selectors"), _SELECTOR_STAND_IN),
        schedules=_lenient_rules(ScheduleConfig, "schedules", raw.get("schedules"), _SCHEDULE_STAND_IN),
        overrides=_lenient_rules(OverrideConfig, "overrides", raw.get("overrides"), {"pool": "unknown", "kind": "hold"}),
    )


def _lenient_rules(
    section: type[SectionT], path: str, raw: Any, stand_in: Mapping[str, Any]
) -> tuple[DraftRule[SectionT], ...]:
    rules = []
    for index, value in enumerate(_items(raw)):
        config, broken = _patched(section, value, stand_in)
        rules.append(DraftRule(path=f"{path}[{index}]", config=config, broken=broken))
    return tuple(rules)


def _lenient_gpus(raw: Any) -> Mapping[str, GpuBudget | None] | None:
    gpus = raw.get("gpus") if isinstance(raw, Mapping) else None
    if not isinstance(gpus, Mapping) or not gpus:
        return None
    budgets: dict[str, GpuBudget | None] = {}
    for gpu_type, value in gpus.items():
        budget, broken = _patched(GpuBudget, value, {})
        budgets[str(gpu_type)] = None if broken else budget
    return budgets


def _items(raw: Any) -> Sequence[Any]:
    return raw if isinstance(raw, list | tuple) else ()


def _patched(section: type[SectionT], raw: Any, stand_in: Mapping[str, Any]) -> tuple[SectionT, frozenset[str]]:
    """A valid section made of what is right in `raw`, and the names of the fields that are not."""
    if not isinstance(raw, Mapping):
        return section.model_validate(dict(stand_in)), frozenset(section.model_fields)
    values = {key: value for key, value in raw.items() if key in section.model_fields}
    broken: set[str] = set()
    while True:
        try:
            return section.model_validate(values), frozenset(broken)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors(include_url=False) if problem["loc"]}
        broken |= wrong
        for name in wrong:
            values.pop(name, None)
            if name in stand_in:
                values[name] = stand_in[name]


# ---- pydantic's words into ours ------------------------------------------------------------------------------------


def path_of(location: Sequence[int | str]) -> str:
    """`("groups", 0, "name")` -> `groups[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def unknown_key(name: str, known: Sequence[str]) -> str:
    """What to tell about a key that is not one of `known`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key (known: {', '.join(sorted(known))})"


def _problems(error: ValidationError) -> list[Problem]:
    found = error.errors(include_url=False)
    # A list whose items are all wrong is also told to be too short; the items' own problems say more.
    deeper = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    return [
        Problem(path=path_of(problem["loc"]), text=_text(problem))
        for problem in found
        if problem["type"] != "too_short" or problem["loc"] not in deeper
    ]


def _text(problem: Any) -> str:
    location, kind, given = problem["loc"], problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        section = _section_at(location[:-1])
        return unknown_key(str(location[-1]), list(section.model_fields) if section else [])
    if kind == "missing":
        return "is missing"
    if kind == "too_short":
        return "must not be empty"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "string_pattern_mismatch" and location and location[-1] in ("name", "dgd", "namespace"):
        message = "must be lower-case letters, digits and inner hyphens"
    message = message.removeprefix("Input should be ").removeprefix("Input ")
    if kind == "model_type":
        message = "must be a mapping"
    shown = repr(given) if given is None or isinstance(given, str | int | float | bool) else type(given).__name__
    return f"{shown}: {message}" if message.startswith("must") else f"{shown}: must be {message}"


def _section_at(location: Sequence[int | str]) -> type[Section] | None:
    """The section class at a path, so that an unknown key can be compared with the known ones."""
    current: Any = Topology
    for part in location:
        if isinstance(current, type) and issubclass(current, Section):
            field: FieldInfo | None = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif get_origin(current) in (tuple, list):
            current = get_args(current)[0]
        elif get_origin(current) is dict:
            current = get_args(current)[1]
    return current if isinstance(current, type) and issubclass(current, Section) else None
