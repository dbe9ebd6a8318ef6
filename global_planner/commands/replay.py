"""[I/O] replay: what a deployment would have done with a trace, or whether a journal's decisions come out again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from global_planner.commands.look import told_errors
from global_planner.commands.options import chosen, compiled_option, duration

if TYPE_CHECKING:  # imports happen in the command, so that --help is quick
    from global_planner.config import Topology
    from global_planner.replay.scenario import ColdStart
    from global_planner.replay.world import Fault

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FAULTS = ("kill", "slow", "hang", "recover")


@click.command()
@click.option(
    "--check", "journal", type=_FOLDER, metavar="DIR", help="Decide a journal again instead; a system's folder will do."
)
@click.option(
    "--show-changes", is_flag=True,
    help="With --check: take a journal that another code version decided, and list what this one would decide differently.",
)  # fmt: skip
@click.option("--topology", "topology_path", type=_FILE, help="The deployment: budget, groups, pools.")
@click.option(
    "--trace", "traces", multiple=True, metavar="MODEL=SOURCE[,OPTION=VALUE…]", help="Requests of a model; see above."
)
@click.option("--policy", show_default="goodput", metavar="NAME", help="Who decides; see above.")
@click.option("--compare", metavar="A,B,…", help="Instead: play all these, side by side in the report.")
@click.option(
    "--beside", "others", multiple=True, type=_FILE, metavar="FILE",
    help="Another topology of the same models, which gets the same requests: side by side in the report. Repeatable.",
)  # fmt: skip
@click.option("--out", type=_FOLDER, default=Path("replay-report"), show_default=True, help="Where the outputs are written.")
@click.option("--budget", type=click.IntRange(1), help="GPUs of the budget, instead of the topology's.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of everything that is random.")
@click.option("--cold-start", metavar="TIME[:CV]", help="Instead of the topology's; with CV its coefficient of variation.")
@click.option("--start", multiple=True, metavar="POOL=N", help="Replicas that are ready at the beginning; else the minimum.")
@click.option(
    "--fault",
    multiple=True,
    metavar="KIND:POOL@TIME",
    help=f"What goes wrong then: {', '.join(_FAULTS)}; see above. Repeatable.",
)
@click.option(
    "--pick", type=click.Choice(["least_tokens", "round_robin", "power_of_two", "prefix_affinity"]),
    help="The router's way to choose an endpoint, in every pool.",
)  # fmt: skip
@click.option("--no-prefix-cache", is_flag=True, help="Every prompt is computed from its beginning, whatever the trace shares.")
@click.option(
    "--told-lengths", is_flag=True, help="Clients name their answers' lengths (max_tokens), and the router reads them."
)
@click.option("--no-admission", is_flag=True, help="The router admits everything, whatever the plan says.")
@compiled_option
@click.option("--window", type=duration, metavar="TIME", help="Account for so much time only; else to the last arrival.")
def replay(
    journal: Path | None,
    show_changes: bool,
    topology_path: Path | None,
    traces: tuple[str, ...],
    policy: str | None,
    compare: str | None,
    others: tuple[Path, ...],
    out: Path,
    budget: int | None,
    seed: int,
    cold_start: str | None,
    start: tuple[str, ...],
    fault: tuple[str, ...],
    pick: str | None,
    no_prefix_cache: bool,
    told_lengths: bool,
    no_admission: bool,
    compiled: bool | None,
    window: float | None,
) -> None:
    """Play a trace through a deployment in virtual time: what would it have done?

    Planners, arbiter, rollout and router policy are the live code; engines, cluster and clock are models. The same inputs give
    the same bytes. OUT/report.html shows traffic and forecasts, replicas and GPUs, latencies and attainment, cost, and why.

    \b
    SOURCE, told by what it holds:
      an Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or a Mooncake JSONL, plain or .gz
      ServeGen's client rates (client, t_s, rate_rps, cv, pattern, param1, …): bursty arrivals are drawn
      any CSV with a time and a rate column (t_s, time, minute …; rate_rps, rps, rpm …): Poisson, or with cv=
      a folder with the journal of a system that ran: the traffic that its planners saw
      prometheus:URL?query=EXPR&start=UNIX&end=UNIX&step=60: a rate in requests/s, as a range query
    OPTION: scale= (of the rate), start=, duration=, shift= (times like 90s, 15m, 2h), repeat=, priority=,
      prefixes=off; of rates also isl=MEAN[:CV], osl=MEAN[:CV], cv=, time=COLUMN, rate=COLUMN; of journals pool=
    Traces name no API keys: turns between keys at the router, which no topology has, do not come up.

    \b
    Policies:
      goodput, max_min           our planners and our arbiter, by objective
      proportional               our planners; everybody the same share of what it wants
      first_come                 our planners ask one by one, and get all or nothing; nobody limits what is admitted
      first_come_door            the same behind our router's door: how much is arbitration alone
      existing                   an existing system: the guide's planner without what ours adds, asking as in first_come
      independent                our planners; each pool alone with a fixed share of the budget
      hpa                        Kubernetes' autoscaler on requests in flight, one for each pool
      static_peak, static_mean   fleets that never move, sized for each pool's busiest 10 s, or its mean load
      static_start               what stands at the start (--start), all the time
      oracle                     knows the trace: the bound

    \b
    KIND of a fault:
      kill                       a ready replica (the pool's first) dies with all it had; the cluster replaces it
      slow, slow=TIMES           that replica takes five (or TIMES) times as long for everything, and is not replaced
      hang                       replicas that start do not become ready any more
      recover                    ends slow and hang in the pool

    \b
    Examples:
      global-planner replay --topology examples/two-models/topology.yaml \\
          --trace chat=azure_conv.csv.gz,scale=0.1,duration=20m --trace code=azure_code.csv.gz,scale=0.1,duration=20m
      global-planner replay --topology T --trace chat=week.csv,rate=rpm,isl=1100:1,osl=210:0.8 --compare goodput,hpa,static_peak
      global-planner replay --topology T --trace chat=trace.jsonl.gz --pick prefix_affinity --fault kill:chat-decode@10m
      global-planner replay --topology now.yaml --beside cheaper.yaml --trace chat=trace.jsonl.gz
      global-planner replay --check demo-report/run/journal
    """
    if journal is not None:
        _check(journal, show_changes)
    if show_changes:
        raise click.UsageError("--show-changes goes with --check.")
    if topology_path is None or not traces:
        raise click.UsageError("Give --topology and at least one --trace, or --check. See --help.")
    if policy is not None and compare is not None:
        raise click.UsageError("Give --policy or --compare, not both: --compare plays all that it names.")
    from global_planner.compiled_sets import REPLAY

    click.echo(chosen(REPLAY, compiled), err=True)
    from global_planner.replay.policies import names_of
    from global_planner.replay.run import ReplayOptions, play, read_sources, table
    from global_planner.replay.scenario import Scenario
    from global_planner.replay.sources import parse_source
    from global_planner.topology_file import load_profiles, load_topology, with_budget

    with told_errors():
        topologies = _called([(each.stem, load_topology(each)) for each in (topology_path, *others)])
        if budget is not None:
            topologies = {place: with_budget(each, budget) for place, each in topologies.items()}
        topology = next(iter(topologies.values()))
        _same_models(topologies)
        names = names_of(next((text for text in (compare, policy) if text is not None), "goodput"))
        everywhere = [name for name in _pools(topology) if all(name in _pools(each) for each in topologies.values())]
        workload = read_sources([parse_source(text) for text in traces], topology, seed)
        if window is None and workload.span_s <= 0.0:
            raise ValueError("all requests come at one moment: --window TIME says for how long to account")
        standing = dict(_start(text, everywhere) for text in start)
        for each in topologies.values():
            _fits(standing, each)
        scenario = Scenario(
            topology=topology,
            profiles=load_profiles(topology),
            workload=workload,
            seed=seed,
            window_s=window,
            start=standing,
            cold_start=None if cold_start is None else _cold_start(cold_start),
            faults=tuple(_fault(text, everywhere) for text in fault),
            pick=pick,  # type: ignore[arg-type]
            prefix_cache=not no_prefix_cache,
            told_lengths=told_lengths,
        )
        options = ReplayOptions(out=out, policies=names, admission=not no_admission)
        beside = {place: replace(scenario, topology=each, profiles=load_profiles(each)) for place, each in topologies.items()}
        numbers = play(scenario, options, traces, beside=beside if others else None)
    if not any(one["requests"] for one in numbers.values()):
        click.echo("no request comes within the time that is accounted for (--window): only the fleet is told", err=True)
    click.echo(table(numbers))
    click.echo(f"\n{out / 'report.html'}  {out / 'summary.json'}")
    sys.exit(1 if any(one["budget_violations"] for one in numbers.values()) else 0)


def _check(journal: Path, show_changes: bool) -> None:
    """Decide every recorded round again. Ends the process: 0 as recorded, 1 not."""
    from global_planner.answers import check_again
    from global_planner.commands.place import journal_of
    from global_planner.replay.check import OtherVersion

    with told_errors():
        try:
            same, told = check_again(journal_of(journal), other_version=show_changes)
        except OtherVersion as error:
            click.echo(f"error: {error} (--show-changes)", err=True)
            sys.exit(2)
        click.echo(told)
        sys.exit(0 if same else 1)


def _start(text: str, pools: list[str]) -> tuple[str, int]:
    pool, _, count = text.partition("=")
    _known(pool, pools, f"--start {text}")
    if not count.isdecimal():
        raise ValueError(f"--start {text}: must be POOL=N with a whole number")
    return pool, int(count)


def _pools(topology: Topology) -> list[str]:
    return [pool.name for _, pool in topology.placed_pools()]


def _called(read: list[tuple[str, Topology]]) -> dict[str, Topology]:
    """The deployments by the names of their files; by their own where those are the same. Raises ValueError."""
    by_file = dict(read)
    by_name = {each.name: each for _, each in read}
    if len(read) > max(len(by_file), len(by_name)):
        raise ValueError("--beside: neither the files' names nor the topologies' (`name:`) differ; runs are called by them")
    return by_file if len(by_file) == len(read) else by_name


def _same_models(topologies: dict[str, Topology]) -> None:
    """Refuses deployments that cannot stand side by side. Raises ValueError."""
    said = {place: {group.model: group.sla for group in each.groups} for place, each in topologies.items()}
    (first, models), *more = said.items()
    for place, other in more:
        if other != models:
            differ = sorted(model for model in {*models, *other} if models.get(model) != other.get(model))
            raise ValueError(f"--beside {place}: not the models and SLAs of {first}: {', '.join(differ)}")


def _fits(standing: dict[str, int], topology: Topology) -> None:
    """Refuses a beginning that the deployment would not allow. Raises ValueError."""
    charged: dict[str, int] = {}
    for _, pool in topology.placed_pools():
        count = standing.get(pool.name, pool.min_replicas)
        charged[pool.gpu_type] = charged.get(pool.gpu_type, 0) + count * pool.gpus_per_replica
        if pool.name in standing and pool.max_replicas is not None and count > pool.max_replicas:
            raise ValueError(f"--start {pool.name}={count}: its max_replicas is {pool.max_replicas}")
    for name, gpus in charged.items():
        budget = topology.budget.gpus[name].max
        if standing and budget is not None and gpus > budget:
            raise ValueError(f"--start: {gpus} {name} together, the minima of other pools among them; the budget is {budget}")


def _cold_start(text: str) -> ColdStart:
    from global_planner.replay.scenario import ColdStart

    mean, _, cv = text.partition(":")
    try:
        spread = float(cv) if cv else 0.0
    except ValueError:
        spread = -1.0
    if not 0.0 <= spread < 10.0:
        raise ValueError(f"--cold-start {text}: must be TIME[:CV], like 90s:0.3")
    return ColdStart(mean_s=0.0 if mean in ("0", "0s") else _time(mean, f"--cold-start {text}"), cv=spread)


def _fault(text: str, pools: list[str]) -> Fault:
    from global_planner.replay.world import Fault

    kind, _, rest = text.partition(":")
    kind, equals, times = kind.partition("=")
    pool, _, when = rest.partition("@")
    if kind not in _FAULTS or not when:
        raise ValueError(f"--fault {text}: must be KIND:POOL@TIME, KIND one of {', '.join(_FAULTS)}")
    if equals and (kind != "slow" or not _is_slower(times)):
        raise ValueError(f"--fault {text}: only slow takes a number, which must be above 1, like slow=8:POOL@TIME")
    _known(pool, pools, f"--fault {text}")
    more = {"times": float(times)} if equals else {}
    return Fault(at_s=_time(when, f"--fault {text}"), pool=pool, kind=kind, **more)  # type: ignore[arg-type]


def _is_slower(text: str) -> bool:
    try:
        return 1.0 < float(text) < 1e6
    except ValueError:
        return False


def _time(text: str, where: str) -> float:
    try:
        return duration(text)
    except click.BadParameter as error:
        raise ValueError(f"{where}: {error.message}") from error


def _known(pool: str, pools: list[str], where: str) -> None:
    if pool not in pools:
        raise ValueError(f"{where}: no pool {pool!r} (has: {', '.join(pools)})")
