"""[I/O] Profiles for every pool of a topology, and the full set of manifests made of them: nothing is assembled by hand.

Pools that would get the same profile (one model, GPU type, role, size, SLA and lengths) are profiled once. What is written:
OUT/profiles/NAME/ for each distinct profile, OUT/topology.yaml with the pools' `profile` set to them, and OUT/manifests/, which
`global-planner compose` makes of that topology. `pool-planner profile --topology` finds `profile_hierarchy` by its entry point.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from global_planner.commands.compose import compose
from global_planner.config import GroupConfig, PoolConfig, Topology
from pool_planner.profiler.command import Shown, tell
from pool_planner.profiler.manifests import planner_config
from pool_planner.profiler.request import ProfileRequest, RequestError, read_request
from pool_planner.profiler.run import Outcome, ProfileFailed, Settings, profile
from pool_planner.profiler.shapes import Phase
from pool_planner.profiler.thorough import Deployed
from pool_planner.types import Role

ISL_UNTIL_KNOWN, OSL_UNTIL_KNOWN = 3000, 150  # the planner's own, where the topology does not say
PHASES: tuple[Phase, ...] = ("prefill", "decode")
ENGINE_FIELDS = ("backend", "pre_deployment_sweeping_mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolJob:
    """One profile and the pools that it is for; `name`: the folder."""

    name: str
    pools: tuple[str, ...]
    role: Role
    request: ProfileRequest


def profile_hierarchy(topology_path: Path, out: Path, settings: Settings) -> int:
    """Profile all pools of a topology. Exit status: 0 all written, 1 a pool could not be profiled, 2 bad input."""
    try:
        raw = yaml.safe_load(topology_path.read_text(encoding="utf-8"))
        topology = Topology.model_validate(raw)
        jobs = jobs_of(topology)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        click.echo(f"{topology_path}: cannot be read: {error}", err=True)
        return 2
    except ValidationError as error:
        for problem in error.errors():
            click.echo(f"{topology_path}: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}", err=True)
        return 2
    except RequestError as error:
        click.echo("\n".join(f"{topology_path}: {problem}" for problem in error.problems), err=True)
        return 2
    folders: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        click.echo(f"[{number}/{len(jobs)}] {job.name}: {', '.join(job.pools)}")
        try:
            with Shown() as shown:
                outcome = profile(
                    job.request,
                    out / "profiles" / job.name,
                    replace(settings, engines=_engines(settings.engines, job.request), deployment=False),
                    announce=shown.say,
                    progress=shown.progress,
                )
        except ProfileFailed as error:
            click.echo(f"{', '.join(job.pools)}: {error}", err=True)
            return 1
        tell(outcome)
        _write_config(outcome, job)
        if outcome.profiled is not None:
            folders |= dict.fromkeys(job.pools, f"profiles/{job.name}")
    out.mkdir(parents=True, exist_ok=True)
    written = out / "topology.yaml"
    written.write_text(yaml.safe_dump(with_profiles(raw, folders), sort_keys=False, width=120), encoding="utf-8")
    click.echo(f"{written}: the topology with its profiles")
    return _compose(written, out / "manifests")


def _write_config(outcome: Outcome, job: PoolJob) -> None:
    """planner_config.json as the planner of one of these pools has it: its own role, and the arbiter to report to."""
    config = planner_config(
        outcome.request,
        outcome.profiled,
        backend=outcome.backend,
        profile_dir=None if outcome.profiled is None else str(outcome.folder.resolve()),
    )
    config |= {"mode": job.role, "environment": "global-planner"}
    if job.role == "decode":
        config.pop("prefill_engine_num_gpu", None)
    (outcome.folder / "planner_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def jobs_of(topology: Topology) -> list[PoolJob]:
    """The distinct profiles that the pools need. Raises RequestError, its problems by group and pool."""
    requests: dict[str, tuple[ProfileRequest, Role, list[str]]] = {}
    problems: list[str] = []
    for group in topology.groups:
        for pool in group.pools:
            try:
                request = read_request(_spec(topology, group, pool))
            except RequestError as error:
                problems += [f"groups.{group.name}.pools.{pool.name}: {problem}" for problem in error.problems]
                continue
            same = repr((replace(request, name="", warnings=()), pool.role))
            requests.setdefault(same, (replace(request, name=pool.name), pool.role, []))[2].append(pool.name)
    if problems:
        raise RequestError(problems)
    return [
        PoolJob(name=pools[0], pools=tuple(pools), role=role, request=request) for request, role, pools in requests.values()
    ]


def with_profiles(raw: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """The topology as it was written, with `profile` of the pools in `folders` set."""
    changed: dict[str, Any] = copy.deepcopy(dict(raw))
    for group in changed["groups"]:
        for pool in group["pools"]:
            pool["profile"] = folders.get(pool["name"], pool["profile"])
    return changed


def _spec(topology: Topology, group: GroupConfig, pool: PoolConfig) -> dict[str, Any]:
    """The DGDR of one pool: its engine is given, its lengths are what its planner expects until it knows."""
    planner = {**topology.planner, **group.planner, **pool.planner}
    extensions: dict[str, Any] = {}
    for section in (topology.planner, group.planner, pool.planner):
        given = section.get("extensions")
        extensions |= given if isinstance(given, dict) else {}
    isl = float(extensions.get("isl_until_known", ISL_UNTIL_KNOWN))
    if pool.isl_max_tokens is not None:
        isl = min(isl, pool.isl_max_tokens / 2)
    # Every engine but a prefill one is profiled in both phases: a decode engine computes the prompts whose blocks it lost.
    mode, phases = ("prefill", ["prefill"]) if pool.role == "prefill" else ("agg", ["prefill", "decode"])
    size = {f"{phase}_engine_num_gpu": pool.gpus_per_replica for phase in phases}
    backend = planner.get("backend", "vllm")
    mocked = backend == "mocker"
    kept = {name: planner[name] for name in ENGINE_FIELDS if name in planner}
    return {
        "model": group.model,
        "backend": "vllm" if mocked else backend,
        "image": "see-manifests",  # the deployment is written by compose, not from this request
        "workload": {
            "isl": max(1, round(isl)),
            "osl": max(1, round(float(extensions.get("osl_until_known", OSL_UNTIL_KNOWN)))),
        },
        "sla": {"ttft": group.sla.ttft_ms, "itl": group.sla.itl_ms},
        "hardware": {"gpuSku": pool.gpu_type, "numGpusPerNode": max(8, pool.gpus_per_replica // pool.nodes_per_replica)},
        "searchStrategy": _strategy(kept.get("pre_deployment_sweeping_mode")),
        "features": {"planner": {**kept, "mode": mode, **size}},
    }


def _strategy(sweeping: object) -> str:
    return "thorough" if sweeping == "thorough" else "rapid"


def _engines(engines: Sequence[Deployed], request: ProfileRequest) -> tuple[Deployed, ...]:
    """Of the engines that run, those of this pool's size; both phases of a decode or aggregated pool on its decode engine."""
    mine = [engine for engine in engines if request.given_gpus.get(engine.phase) == engine.gpus]
    if request.planner.mode == "prefill":
        return tuple(mine)
    decode = [engine for engine in mine if engine.phase == "decode"]
    return tuple(replace(engine, phase=phase) for engine in decode for phase in PHASES)


def _compose(topology: Path, out: Path) -> int:
    """The manifests, by the command that makes them of any topology. What it cannot do is said, and the profiles stay."""
    try:
        compose.main(["--topology", str(topology), "--out", str(out)], prog_name="compose", standalone_mode=False)
    except SystemExit as ended:
        if ended.code not in (0, None):
            click.echo(f"no manifests: mend that, and call: global-planner compose --topology {topology} --out {out}", err=True)
            return 1
    return 0
