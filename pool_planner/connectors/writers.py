"""Who else sets the replicas of a component: people, the operator, or a controller that would fight with us. Pure.

The API server keeps with every object which client wrote which field last. A person's edit is an observation like any other;
another controller (an old planner, an HPA, a GitOps controller) would undo what we do, so a pool that has one is left to it
until somebody adopts the pool. Where the API server does not note the writer, numbers that keep coming back give one away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pool_planner.connectors.dgd_pods import unix

OUR_MANAGERS = ("global-planner", "pool-planner")
OPERATOR_MANAGERS = ("manager", "dynamo-operator", "dynamo-operator-controller-manager")
"""Field managers that set replicas on behalf of the DGDs' own operator, as it is usually installed."""
# Clients that a person holds in the hand.
_PEOPLE = ("kubectl", "k9s", "lens", "headlamp", "mozilla", "node-fetch", "oc")

EDITS = 3
"""So many times somebody may change a number that we wrote, before it is a controller and not a person..."""
EDITS_WINDOW_S = 600.0
"""...within so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A client that wrote a field last, and when (Unix seconds; None: it is not said)."""

    manager: str
    at_unix_s: float | None


def owner(managed: Any, paths: Sequence[Sequence[str]]) -> Writer | None:
    """The last of the clients that own one of the fields (`("f:spec", "f:replicas")`); None: nobody does. An owner of a whole
    list or map above the field owns it too."""
    found = []
    for entry in managed if isinstance(managed, list) else []:
        fields = entry.get("fieldsV1")
        if isinstance(fields, Mapping) and any(_owns(fields, path) for path in paths):
            found.append(Writer(manager=str(entry.get("manager", "")), at_unix_s=unix(entry.get("time"))))
    return max(found, key=lambda item: item.at_unix_s or 0.0, default=None)


def _owns(fields: Mapping[str, Any], path: Sequence[str]) -> bool:
    at: Any = fields
    for depth, part in enumerate(path):
        if not isinstance(at, Mapping) or part not in at:
            # `f:components: {}` is a list that is owned as a whole.
            return depth > 1 and at == {}
        at = at[part]
    return True


def replica_paths(component: str, *, in_list: bool) -> tuple[tuple[str, ...], ...]:
    """Where the replicas of a component stand in the field sets of a DGD."""
    if in_list:
        return (("f:spec", "f:components", f'k:{{"name":"{component}"}}', "f:replicas"),)
    return (("f:spec", "f:services", f"f:{component}", "f:replicas"),)


ADAPTER_PATHS = (("f:spec", "f:replicas"),)


def is_person(manager: str) -> bool:
    name = manager.lower()
    return any(name == person or name.startswith((f"{person}-", f"{person}/", f"{person}.")) for person in _PEOPLE)


def foreign(writer: Writer | None, operators: Sequence[str]) -> Writer | None:
    """The writer if it is a controller that is neither ours nor the DGDs' own operator."""
    if writer is None or writer.manager in (*OUR_MANAGERS, *operators) or not writer.manager:
        return None
    return None if is_person(writer.manager) else writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What became of our numbers. `ours`: the last that we wrote (None: none, or somebody has changed it since), in place of
    `version`; `undone_s`: when others changed one."""

    ours: int | None = None
    version: str | None = None
    undone_s: tuple[float, ...] = ()

    def wrote(self, replicas: int, version: str | None) -> Edits:
        """After a write that succeeded, on an object that was at `version`."""
        return Edits(ours=replicas, version=version, undone_s=self.undone_s)

    def saw(self, replicas: int | None, version: str | None, now_s: float) -> Edits:
        """After an observation. One that still shows what was before our write says nothing; another number was set by
        somebody."""
        recent = tuple(self._recent(now_s))
        if replicas is None or self.ours is None or version == self.version or replicas == self.ours:
            return Edits(ours=self.ours, version=self.version, undone_s=recent)
        return Edits(undone_s=(*recent, now_s))

    def fights(self, now_s: float) -> bool:
        return len(tuple(self._recent(now_s))) >= EDITS

    def _recent(self, now_s: float) -> Iterator[float]:
        return (at_s for at_s in self.undone_s if now_s - at_s <= EDITS_WINDOW_S)
