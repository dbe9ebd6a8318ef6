"""What the router costs: `python -m tests.bench.router --json FILE [--peer NAME[=COMMAND] …]`.

The router runs alone on one core; two engines that answer at once (a small C server) and the load run on another. Three
questions, each asked of everybody in turn, several rounds, medians kept:

  saturation  how many requests a second (wrk, 64 connections)
  latency     how much later an answer comes at 100 and 300 requests a second (open loop) than straight from the engine
  streams     what 50 streams of 200 chunks, 20 ms apart, cost in TTFT and CPU

`direct` is the engine itself; `ours` an aggregated pool with a default configuration, `ours_pd` the hand-off from prefill to
decode; both are compiled code where `global-planner compile router` was run for these sources. Known peers are installed on
their first use: sglang-router, vllm-router, litellm, nginx; `bare` is the least that a router in Python can be (no limits, no
metrics, nothing), which says what a machine's kernel takes. Any other is NAME=COMMAND: it is started on the router's core,
{port}, {engine1} and {engine2} are replaced, and it must serve POST /v1/chat/completions for model "m".

  python -m tests.bench.router --json bench.json --peer sglang-router --peer nginx
  python -m tests.bench.router --parts saturation --rounds 3 --seconds 2 --peer sglang-router    # a quick look at one thing

Everybody runs on the same two cores in the same minutes, so ratios mean something where the machine is not idle; absolute
figures then do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop

from pool_planner.compiled import wanted
from router.compiled_set import ROUTER
from tests.bench.router_load import BODY, STREAMS, open_loop, saturate, streams
from tests.bench.router_targets import CHUNKS, KNOWN, Target, engines, ours, peer_command, start

PARTS = ("saturation", "latency", "streams")
RATES = (100, 300)
FAST_ENOUGH = 50_000.0


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def measure(target: Target, arguments: argparse.Namespace, script: Path) -> dict[str, float]:
    """One round: absolute values; what is added to `direct` is worked out when all rounds are there."""
    result: dict[str, float] = {}
    if "saturation" in arguments.parts:
        before = target.cpu_s()
        result["rps_saturation"] = saturate(target.port, arguments.seconds, arguments.load_core, script)
        if target.process is not None:
            result["cpu_us_per_request"] = (target.cpu_s() - before) * 1e6 / (result["rps_saturation"] * arguments.seconds)
    if "latency" in arguments.parts:
        for rate in RATES:
            latencies = uvloop.run(open_loop(target.port, rate, arguments.seconds))
            result[f"p50_ms_{rate}"], result[f"p99_ms_{rate}"] = quantile(latencies, 0.5), quantile(latencies, 0.99)
    if "streams" in arguments.parts:
        before = target.cpu_s()
        ttfts = uvloop.run(streams(target.port))
        result["stream_ttft_p50_ms"], result["stream_ttft_p99_ms"] = quantile(ttfts, 0.5), quantile(ttfts, 0.99)
        if target.process is not None:
            result["cpu_ms_per_1k_chunks"] = (target.cpu_s() - before) * 1000.0 / (STREAMS * CHUNKS / 1000.0)
    if target.process is not None:
        result["rss_mb"] = target.rss_mb() or 0.0
    return result


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds; added latencies are differences to `direct` of the same round, `rps_over_…` the ratios of the
    saturation of the same round."""
    out: dict[str, dict[str, float]] = {}
    for name, results in rounds.items():
        values = {key: statistics.median(result[key] for result in results) for key in results[0]}
        if name != "direct":
            for key in [key for key in values if key.startswith(("p50", "p99", "stream_ttft"))]:
                added = [one[key] - direct[key] for one, direct in zip(results, rounds["direct"], strict=True)]
                renamed = key.replace("stream_", "stream_added_") if "stream" in key else f"added_{key}"
                values[renamed] = statistics.median(added)
        if name.startswith("ours") and "rps_saturation" in values:
            for other, theirs in rounds.items():
                if not other.startswith("ours") and other != "direct":
                    ratios = [a["rps_saturation"] / b["rps_saturation"] for a, b in zip(results, theirs, strict=True)]
                    values[f"rps_over_{other}"] = statistics.median(ratios)
        out[name] = {key: round(value, 3) for key, value in values.items()}
    return out


COLUMNS = (
    ("rps_saturation", "req/s", 0),
    ("cpu_us_per_request", "CPU us", 0),
    ("added_p50_ms_100", "+p50@100", 2),
    ("added_p99_ms_100", "+p99@100", 2),
    ("added_p50_ms_300", "+p50@300", 2),
    ("added_p99_ms_300", "+p99@300", 2),
    ("stream_added_ttft_p50_ms", "+TTFT50", 2),
    ("stream_added_ttft_p99_ms", "+TTFT99", 2),
    ("cpu_ms_per_1k_chunks", "ms/1k ch", 1),
    ("rss_mb", "RSS MB", 1),
)


def table(result: dict[str, dict[str, float]]) -> str:
    shown = [column for column in COLUMNS if any(column[0] in values for values in result.values())]
    lines = [f"{'':>16}" + "".join(f"{title:>10}" for _, title, _ in shown)]
    for name, values in result.items():
        cells = (f"{values[key]:>10.{digits}f}" if key in values else f"{'':>10}" for key, _, digits in shown)
        lines.append(f"{name:>16}" + "".join(cells))
    for name, values in result.items():
        ratios = [
            f"{value:.2f} x {key.removeprefix('rps_over_')}" for key, value in values.items() if key.startswith("rps_over")
        ]
        if ratios:
            lines.append(f"{name}, saturation in alternation: {', '.join(ratios)}")
    return "\n".join(lines)


def everybody(arguments: argparse.Namespace, folder: Path, at: list[int], log: Path) -> list[Target]:
    """Those to be measured, started."""
    commands = ours(folder, at)
    for peer in arguments.peer:
        name, _, command = peer.partition("=")
        if not command:
            if name not in KNOWN:
                sys.exit(f"--peer {name}: not known (known: {', '.join(KNOWN)}); give NAME=COMMAND")
            try:
                command = peer_command(name, folder)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{name} cannot be installed and is left out: {error}", file=sys.stderr)
                continue
        commands[name] = command
    started = [Target("direct", at[0], None)]
    for name, command in commands.items():
        if arguments.only and name not in arguments.only:
            continue
        target = start(name, command, at, arguments.router_core, log)
        if target is not None:
            started.append(target)
    return started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME[=COMMAND]", help="another router to measure in turn"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of ours, ours_pd and the peers, only these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="length of each saturation and open-loop run")
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="real-time priority for all that is measured, so that others on a shared machine stay off both cores meanwhile",
    )
    parser.add_argument("--router-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the router, one for the load")
    if "saturation" in arguments.parts and not shutil.which("wrk"):
        sys.exit("wrk is needed for saturation (Debian: apt-get install wrk); without it, ask for --parts latency streams")
    os.sched_setaffinity(0, {arguments.load_core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        if arguments.isolate:
            sys.exit("--isolate needs the right to real-time priority (CAP_SYS_NICE)")
        print("real-time priority is not allowed: the generator shares its core fairly", file=sys.stderr)
    print(f"load average before: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    compiled = ROUTER.available() and wanted() != "no"
    print(f"ours is {'compiled' if compiled else 'plain Python (global-planner compile router)'}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as undo:
        folder = Path(name)
        log = folder / "log"
        log.touch()
        script = folder / "post.lua"
        body = json.dumps(BODY, separators=(",", ":"))
        script.write_text(f"wrk.method='POST'\nwrk.headers['Content-Type']='application/json'\nwrk.body=[[{body}]]\n")
        behind = engines(folder, arguments.load_core, log)
        targets = everybody(arguments, folder, [engine.port for engine in behind], log)
        for target in targets:
            if target.process is not None:
                undo.callback(target.process.terminate)
        rounds: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
        for number in range(arguments.rounds):
            for target in targets:
                with contextlib.ExitStack() as priority:
                    if arguments.isolate:
                        # The engines above the generator, which waits for its next request in a loop.
                        for one, level in ((target, 1), (behind[0], 2), (behind[1], 2)):
                            priority.enter_context(one.ahead(level))
                    rounds[target.name].append(measure(target, arguments, script))
                shown = " ".join(f"{key}={value:.4g}" for key, value in rounds[target.name][-1].items())
                print(f"round {number + 1}/{arguments.rounds} {target.name}: {shown}", file=sys.stderr)
        result = summary(rounds)
    print(table(result))
    if result["direct"].get("rps_saturation", FAST_ENOUGH) < FAST_ENOUGH:
        print(f"the engines answered {result['direct']['rps_saturation']:.0f} requests a second: they were measured too")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
