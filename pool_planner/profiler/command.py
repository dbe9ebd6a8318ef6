"""[I/O] The commands `pool-planner profile` and `pool-planner curves`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pool_planner.performance.profile import ProfileError, load_profile
from pool_planner.profiler.answers import Question, answer
from pool_planner.profiler.cache import default_folder
from pool_planner.profiler.manifests import PLANNER_IMAGE
from pool_planner.profiler.measure_plan import Limits
from pool_planner.profiler.request import RequestError, read_request
from pool_planner.profiler.run import Outcome, ProfileFailed, Settings, profile
from pool_planner.profiler.shapes import Phase
from pool_planner.profiler.thorough import Deployed, Options

PHASES: tuple[Phase, ...] = ("prefill", "decode")
HIERARCHY = "pool_planner.hierarchy"  # entry points: who can profile all pools of a topology

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("profile")
@click.option("--dgdr", type=_FILE, help="A DynamoGraphDeploymentRequest, or its spec: YAML or JSON.")
@click.option("--topology", type=_FILE, help="A topology: profile every pool of it.")
@click.option("--out", type=_FOLDER, required=True, help="Where everything is written.")
@click.option("--prefill-url", help="thorough: an engine to measure prefill on.")
@click.option("--decode-url", help="thorough: an engine to measure decode on.")
@click.option("--engine-url", help="thorough: one engine for both.")
@click.option(
    "--candidate", "candidates", multiple=True, metavar="PHASE:GPUS:URL",
    help="thorough: a deployed candidate; the best of a phase is swept. Repeatable.",
)  # fmt: skip
@click.option("--prefill-gpus", type=click.IntRange(1), help="GPUs of a prefill engine: do not choose.")
@click.option("--decode-gpus", type=click.IntRange(1), help="GPUs of a decode (or aggregated) engine: do not choose.")
@click.option("--prefill-granularity", type=click.IntRange(2), show_default="16", help="Prompt lengths of a prefill curve.")
@click.option("--decode-granularity", type=click.IntRange(2), show_default="6", help="Contexts, and batches of each.")
@click.option("--max-kv-tokens", type=click.IntRange(1), help="thorough: what a KV cache holds, if /metrics do not tell.")
@click.option("--max-context", type=click.IntRange(200), help="thorough: longest context to sweep.")
@click.option(
    "--max-concurrency", type=click.IntRange(1), default=256, show_default=True, help="thorough: most requests at once."
)
@click.option("--max-requests", type=click.IntRange(1), help="thorough: refuse a plan that may take more requests.")
@click.option(
    "--repetitions", type=(click.IntRange(1), click.IntRange(1)), default=(3, 8), show_default=True, metavar="LEAST MOST",
    help="thorough: of a point, until its median is known well enough.",
)  # fmt: skip
@click.option(
    "--tight", type=click.FloatRange(0.001, 0.5), default=0.03, show_default=True,
    help="thorough: how wide the median's 95 % interval may be to each side, as a share of it.",
)  # fmt: skip
@click.option(
    "--cache", type=_FOLDER, default=default_folder, show_default="~/.cache/global-planner", help="Folder of estimates."
)
@click.option("--no-cache", is_flag=True, help="Estimate everything again.")
@click.option("--planner-image", default=PLANNER_IMAGE, show_default=True, help="Image of the planner in final_config.yaml.")
def profile_command(dgdr: Path | None, topology: Path | None, out: Path, **options: Any) -> None:
    """Find out what engines can do, and write everything that a planner needs.

    Reads a DGDR, compares engine shapes for its SLA, sweeps the curves of the best and writes them with the planner's
    configuration, the manifests and a report into OUT. How is told by features.planner.pre_deployment_sweeping_mode (or
    searchStrategy): `rapid` estimates with aiconfigurator, `thorough` measures engines that run, `none` makes no curves.

    \b
    pool-planner profile --dgdr dgdr.yaml --out profile/
    pool-planner profile --dgdr dgdr.yaml --out profile/ --prefill-url http://p:8000 --decode-url http://d:8000
    pool-planner profile --dgdr dgdr.yaml --out profile/ --candidate decode:1:http://a:8000 --candidate decode:2:http://b:8000
    pool-planner profile --topology topology.yaml --out profiles/

    An interrupted thorough profile goes on where it stopped: call it again with the same OUT. Exit status: 0 written,
    1 no profile could be made, 2 the request is refused.
    """
    if (dgdr is None) == (topology is None):
        _refuse("give either --dgdr or --topology")
    if topology is not None:
        sys.exit(_hierarchy()(topology, out, _settings(options, {})))
    assert dgdr is not None
    try:
        request = read_request(_overridden(yaml.safe_load(dgdr.read_text(encoding="utf-8")), options))
    except RequestError as error:
        _refuse("\n".join(f"{dgdr}: {problem}" for problem in error.problems))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        _refuse(f"{dgdr}: cannot be read: {error}")
    settings = _settings(options, request.given_gpus)
    began = time.monotonic()
    try:
        with Shown() as shown:
            outcome = profile(request, out, settings, announce=shown.say, progress=shown.progress)
    except ProfileFailed as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo(f"interrupted; what was measured is kept in {out}: the same command goes on", err=True)
        sys.exit(130)
    tell(outcome)
    _tell_load(outcome)
    click.echo(f"written to {out} in {time.monotonic() - began:.1f} s; see {out / 'report.html'}")


@click.command("curves")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--isl", type=click.IntRange(1), required=True, help="Prompt tokens.")
@click.option("--osl", type=click.IntRange(1), required=True, help="Answer tokens.")
@click.option("--ttft", type=click.FloatRange(0, min_open=True), required=True, help="SLA for the first token, ms.")
@click.option("--itl", type=click.FloatRange(0, min_open=True), required=True, help="SLA between tokens, ms.")
@click.option("--rps", type=click.FloatRange(0, min_open=True), help="Requests/s: how many replicas do they need?")
@click.option("--prefill-gpus", type=click.IntRange(1), show_default="as profiled, or 1", help="GPUs of a prefill engine.")
@click.option("--decode-gpus", type=click.IntRange(1), show_default="as profiled, or 1", help="GPUs of a decode engine.")
def curves_command(
    folder: Path,
    isl: int,
    osl: int,
    ttft: float,
    itl: float,
    rps: float | None,
    prefill_gpus: int | None,
    decode_gpus: int | None,
) -> None:
    """What one replica can do, and how many a load needs, in words.

    DIR holds profile data, npz or JSON, of any of the existing tools.

    \b
    pool-planner curves profile/ --isl 3000 --osl 150 --ttft 500 --itl 50
    pool-planner curves profile/ --isl 3000 --osl 150 --ttft 500 --itl 50 --rps 20
    """
    try:
        found = load_profile(folder)
    except ProfileError as error:
        _refuse(str(error))
    told = _told_gpus(folder)
    question = Question(
        isl=isl,
        osl=osl,
        ttft_ms=ttft,
        itl_ms=itl,
        prefill_gpus=prefill_gpus or told.get("prefill_engine_num_gpu", 1),
        decode_gpus=decode_gpus or told.get("decode_engine_num_gpu", 1),
        rps=rps,
    )
    for line in answer(found, question):
        click.echo(line)


def _told_gpus(folder: Path) -> dict[str, int]:
    """GPUs of the engines, where a planner_config.json beside the profile says."""
    try:
        content = yaml.safe_load((folder / "planner_config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: value for key, value in content.items() if isinstance(value, int) and not isinstance(value, bool) and value > 0
    }


class Shown:
    """Progress on the terminal: a bar for each kind of work, and lines between."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Shown:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._bars.console.print(text)

    def progress(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)


def tell(outcome: Outcome) -> None:
    """The ranking and the warnings, on the terminal."""
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
    if outcome.profiled is None:
        click.echo("no curves: load-based scaling only")
        return
    target = outcome.profiled.target
    click.echo(f"SLA: TTFT {target.ttft_ms:g} ms, ITL {target.itl_ms:g} ms, at {target.isl} → {target.osl} tokens")
    for phase, choice in outcome.profiled.choices.items():
        table = Table(box=None, pad_edge=False, header_style="bold", title=f"{phase} engines", title_justify="left")
        table.add_column("engine")
        for name in ("GPUs", "TTFT ms" if phase == "prefill" else "ITL ms", "sequences", "tokens/s/GPU"):
            table.add_column(name, justify="right")
        table.add_column("SLA", overflow="fold")
        for candidate in choice.ranking:
            mark = "* " if candidate == choice.candidate else "  "
            if candidate.problem is not None:
                table.add_row(f"{mark}{candidate.shape}", str(candidate.shape.gpus), "", "", "", candidate.problem)
                continue
            table.add_row(
                f"{mark}{candidate.shape}",
                str(candidate.shape.gpus),
                f"{candidate.latency_ms:.1f}",
                str(candidate.batch),
                f"{candidate.thpt_per_gpu:.1f}",
                "met" if candidate.meets_sla else "missed",
            )
        Console(highlight=False).print(table)


def _tell_load(outcome: Outcome) -> None:
    """How many replicas the request's own load needs, where it names one (a concurrency counts as so many in flight)."""
    request, profiled = outcome.request, outcome.profiled
    if profiled is None or (request.request_rate_rps is None and request.concurrency is None):
        return
    target = profiled.target
    rate = request.request_rate_rps
    if rate is None and request.concurrency is not None:
        rate = request.concurrency / (target.ttft_ms + target.itl_ms * target.osl) * 1e3  # Little's law, at the SLA
    question = Question(
        isl=target.isl,
        osl=target.osl,
        ttft_ms=target.ttft_ms,
        itl_ms=target.itl_ms,
        prefill_gpus=profiled.gpus("prefill") or 1,
        decode_gpus=profiled.gpus("decode") or 1,
        rps=rate,
    )
    for line in answer(load_profile(outcome.folder), question):
        click.echo(line)


def _settings(options: dict[str, Any], given: Mapping[str, int]) -> Settings:
    """`given`: GPUs of an engine by phase, where the request says."""
    both = options["engine_url"]
    engines = []
    for phase in PHASES:
        gpus = options[f"{phase}_gpus"] or given.get(phase) or (options["decode_gpus"] if both else None) or 1
        if options[f"{phase}_url"] or both:
            engines.append(Deployed(phase=phase, gpus=gpus, url=options[f"{phase}_url"] or both))
    for text in options["candidates"]:
        found = re.fullmatch(r"(prefill|decode):([1-9]\d*):(.+)", text)
        if found is None:
            _refuse(f"--candidate {text!r}: expected PHASE:GPUS:URL, like decode:2:http://localhost:8000")
        engines.append(Deployed(phase="prefill" if found[1] == "prefill" else "decode", gpus=int(found[2]), url=found[3]))
    for engine in engines:
        if not engine.url.startswith(("http://", "https://")):
            _refuse(f"{engine.url!r} is not a URL (http://HOST:PORT)")
    least, most = options["repetitions"]
    try:
        limits = Limits(least=least, most=most, tight=options["tight"], concurrency=options["max_concurrency"])
    except ValueError as error:
        _refuse(str(error))
    measured = Options(
        limits=limits,
        kv_tokens=options["max_kv_tokens"],
        max_context=options["max_context"],
        max_requests=options["max_requests"],
    )
    return Settings(
        engines=tuple(engines),
        options=measured if engines else None,
        cache=None if options["no_cache"] else options["cache"],
        planner_image=options["planner_image"],
        prefill_granularity=options["prefill_granularity"],
        decode_granularity=options["decode_granularity"],
    )


def _overridden(raw: Any, options: dict[str, Any]) -> Any:
    """The request with what the command line says on top: GPUs of an engine."""
    if not isinstance(raw, dict):
        return raw
    spec = raw.get("spec", raw)
    if not isinstance(spec, dict):
        return raw
    changed = dict(spec)
    given = {f"{p}_engine_num_gpu": options[f"{p}_gpus"] for p in ("prefill", "decode") if options[f"{p}_gpus"] is not None}
    features = spec.get("features") or {}
    if given and isinstance(features, dict) and isinstance(features.get("planner", {}), dict):
        changed["features"] = {**features, "planner": {**features.get("planner", {}), **given}}
    return {**raw, "spec": changed} if "spec" in raw else changed


def _hierarchy() -> Callable[[Path, Path, Settings], int]:
    """Who profiles a whole topology: topologies are above this package, so they register themselves."""
    for entry in entry_points(group=HIERARCHY):
        found: Callable[[Path, Path, Settings], int] = entry.load()
        return found
    _refuse(f"--topology: nothing that reads topologies is installed (entry points of {HIERARCHY!r})")


def _refuse(text: str) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(2)
