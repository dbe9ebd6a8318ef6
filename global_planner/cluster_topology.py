"""A topology out of what runs: live DGDs and adapters, read as the planner reads them. Pure; `commands.init` asks the cluster.

What a manifest does not say is not invented: the budget is what is charged now, so that nothing grows before a person says
more; a component whose replicas or GPUs cannot be read is left out, and said. `compose` notes on its DGDs what only a
topology knows, so that what it wrote comes back as the same pools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from global_planner.compose.manifests import POOLS_ANNOTATION
from pool_planner.connectors.component_state import ComponentState, Target, component_state, read_adapter, read_dgd_object
from pool_planner.types import Role

GPU_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "node.kubernetes.io/instance-type")
SOME_GPU = "gpu"
_MODEL_FLAGS = ("--model", "--model-path", "--model-name", "--served-model-name")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPool:
    """One component with engines. `note`: what the DGD's annotation says of it. `model` None: no manifest says it."""

    namespace: str
    dgd: str
    component: str
    role: Role
    replicas: int
    gpus_per_replica: int
    gpu_type: str | None
    model: str | None
    adapter: bool
    note: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.note.get("pool") or f"{self.dgd}-{self.role}")

    @property
    def gpus(self) -> int:
        return self.replicas * self.gpus_per_replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was found. `unread`: a sentence for each thing that could not be read, which is held until it can."""

    pools: tuple[FoundPool, ...]
    unread: tuple[str, ...]

    def charged(self) -> Mapping[str, int]:
        """GPUs by type."""
        found: dict[str, int] = {}
        for pool in self.pools:
            gpu_type = pool.gpu_type or SOME_GPU
            found[gpu_type] = found.get(gpu_type, 0) + pool.gpus
        return found


def read_cluster(dgds: Sequence[Mapping[str, Any]], adapters: Sequence[Mapping[str, Any]]) -> Reading:
    """The pools in raw DGDs and adapters, of any namespaces."""
    pools: list[FoundPool] = []
    unread: list[str] = []
    by_dgd = [read_adapter(raw) for raw in adapters]
    for raw in dgds:
        seen = read_dgd_object(raw)
        where = f"{seen.namespace}/{seen.name}"
        if seen.dgd is None:
            unread.append(f"DGD {where}: {seen.problem}")
            continue
        mine = [item for item in by_dgd if (item.namespace, item.dgd) == (seen.namespace, seen.name)]
        notes = _notes(raw)
        for component in seen.dgd.components:
            if component.role is None:  # a frontend, a planner: no engines
                continue
            target = Target(namespace=seen.namespace, dgd=seen.name, role=component.role, component=component.name)
            state = component_state(target, seen, mine, None, engine_port=None)
            wrong = _unreadable(state)
            if wrong is not None:
                unread.append(f"{component.name} of DGD {where}: {wrong}")
                continue
            pools.append(_pool(target, state, _template(raw, component.name), notes.get(component.name, {})))
    return Reading(pools=tuple(pools), unread=tuple(unread))


def _unreadable(state: ComponentState) -> str | None:
    if state.unknown is not None:
        return state.unknown
    if state.spec is None:
        return "its replicas cannot be read"
    return "its GPUs cannot be read" if state.gpus_per_replica is None else None


def _pool(target: Target, state: ComponentState, template: Mapping[str, Any], note: Mapping[str, Any]) -> FoundPool:
    ordered = max(count for count in (state.spec, state.adapter_spec) if count is not None)
    assert state.gpus_per_replica is not None
    selector = template.get("nodeSelector") or {}
    labelled = next((str(selector[label]) for label in GPU_LABELS if label in selector), None)
    return FoundPool(
        namespace=target.namespace,
        dgd=target.dgd,
        component=target.component,
        role=target.role,
        replicas=ordered,
        gpus_per_replica=state.gpus_per_replica,
        gpu_type=str(note["gpu_type"]) if "gpu_type" in note else None if labelled is None else type_name(labelled),
        model=str(note["model"]) if "model" in note else _model(template),
        adapter=state.adapter is not None,
        note=note,
    )


def _notes(raw: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What `compose` wrote on the DGD, by component; nothing where it is no mapping of mappings."""
    text = ((raw.get("metadata") or {}).get("annotations") or {}).get(POOLS_ANNOTATION)
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return {name: note for name, note in found.items() if isinstance(note, dict)} if isinstance(found, dict) else {}


def _template(raw: Mapping[str, Any], component: str) -> Mapping[str, Any]:
    """The pod of a component, in either shape; its first container under `container`."""
    spec = raw.get("spec") or {}
    service = (spec.get("services") or {}).get(component)
    if isinstance(service, Mapping):
        pod = service.get("extraPodSpec") or {}
        return {**pod, "container": pod.get("mainContainer") or {}}
    for item in spec.get("components") or ():
        if isinstance(item, Mapping) and item.get("name") == component:
            pod = (item.get("podTemplate") or {}).get("spec") or {}
            return {**pod, "container": next(iter(pod.get("containers") or ()), {})}
    return {}


def _model(template: Mapping[str, Any]) -> str | None:
    """The model in an engine's command line, by its flag or as what `serve` is followed by."""
    container = template.get("container") or {}
    words = [str(word) for word in (*(container.get("command") or ()), *(container.get("args") or ()))]
    words = [part for word in words for part in word.split()]
    for flag in _MODEL_FLAGS:
        for index, word in enumerate(words):
            if word == flag and index + 1 < len(words):
                return words[index + 1]
            if word.startswith(f"{flag}="):
                return word.partition("=")[2]
    for index, word in enumerate(words[:-1]):
        if word in ("serve", "trtllm-serve") and not words[index + 1].startswith("-"):
            return words[index + 1]
    return None


def type_name(text: str) -> str:
    """A node's label as a GPU type is written in a budget.

    >>> type_name("NVIDIA-H100-80GB-HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---- the file -----------------------------------------------------------------------------------------------------------


def as_yaml(reading: Reading, *, name: str) -> str:
    """A topology with what is known, and what a person has to say in its comments. Raises ValueError when there is no pool."""
    if not reading.pools:
        raise ValueError("no engines were found: no component is a prefill, decode or aggregated worker")
    head = [
        "# Written from what runs. Before it is used:",
        "# - budget: what is charged now; nothing grows until you give more.",
        "# - sla: the guide's defaults; say yours. priority and weight: say who goes first.",
        "# - profile: a folder of profile data beside this file, for each kind of engine.",
        "# - arbiter.mode: observe records what would be done and does nothing; act when you like what you see.",
        *(f"# Could not be read, and is not planned: {text}" for text in reading.unread),
        *(f"# {text}" for text in _doubts(reading)),
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(as_mapping(reading, name=name), sort_keys=False, width=120)


def as_mapping(reading: Reading, *, name: str) -> dict[str, Any]:
    """The topology as a mapping; groups in the order in which they were found."""
    groups: dict[str, list[FoundPool]] = {}
    for pool in reading.pools:
        groups.setdefault(_group(pool), []).append(pool)
    namespaces = [pool.namespace for pool in reading.pools]
    usual = max(sorted(set(namespaces)), key=namespaces.count)
    return {
        "name": name,
        "budget": {"gpus": {gpu_type: {"max": max(1, count)} for gpu_type, count in sorted(reading.charged().items())}},
        "cluster": {"kind": "kubernetes", "namespace": usual},
        "arbiter": {"mode": "observe"},
        "planner": {"backend": "vllm"},
        "groups": [_group_mapping(group, pools, usual) for group, pools in groups.items()],
    }


def _group(pool: FoundPool) -> str:
    """Pools of one model are one group, wherever they run; a DGD whose model nobody says is a group of its own."""
    said = pool.note.get("group") or pool.model or pool.dgd
    return (type_name(str(said)) or pool.dgd)[:63].strip("-")


def _group_mapping(group: str, pools: Sequence[FoundPool], usual: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": group, "model": next((pool.model for pool in pools if pool.model), pools[0].dgd)}
    if pools[0].namespace != usual:
        found["namespace"] = pools[0].namespace
    found["sla"] = {"ttft_ms": 500.0, "itl_ms": 50.0}
    found["pools"] = [_pool_mapping(pool) for pool in pools]
    return found


def _pool_mapping(pool: FoundPool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": pool.name,
        "role": pool.role,
        "dgd": pool.dgd,
        "component": pool.component,
        "gpu_type": pool.gpu_type or SOME_GPU,
        "gpus_per_replica": pool.gpus_per_replica,
        "min_replicas": pool.note.get("min_replicas", min(1, pool.replicas)),
        "profile": "profile",
    }
    for key in ("max_replicas", "isl_max_tokens"):
        if key in pool.note:
            made[key] = pool.note[key]
    return made


def _doubts(reading: Reading) -> Iterator[str]:
    for pool in reading.pools:
        if pool.gpu_type is None:
            yield f"{pool.name}: no node selector says its GPU type; it is called {SOME_GPU!r} here."
        if pool.model is None:
            yield f"{pool.name}: no command line says its model."
        if not pool.adapter:
            yield f"{pool.name}: it has no scaling adapter, so its DGD has to be patched (deploy/components/patch-dgds)."
