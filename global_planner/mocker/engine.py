"""[I/O] The process of one mock engine: `python -m global_planner.mocker.engine --spec FILE`.

Starts in a fraction of a second and stays small, because a demo runs dozens: it imports neither numpy nor pydantic nor a web
framework. It ends on SIGTERM after what is in flight, and with the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
from pathlib import Path

import orjson
import uvloop

from global_planner.mocker.engine_server import EngineServer
from global_planner.replay.engine_spec import EngineSpec, EngineSpecError, spec_from_raw
from pool_planner.clock import ENV_ORIGIN, ENV_SPEED, SpeedClock, clock_from_environment

PR_SET_PDEATHSIG = 1
POLL_WALL_S = 0.02
PARENT_CHECK_WALL_S = 1.0

_ABOUT = f"""\
One mock inference engine: an OpenAI-compatible server whose timing follows measured curves instead of a GPU.

  POST /v1/chat/completions, /v1/completions   streamed or not; answers max_tokens tokens (default 16) of known text
  GET  /v1/models, /health, /metrics           /health is 503 until --ready-at; /metrics has vLLM's series
  GET  /mock/state                             what runs, waits, and is held for a decode engine
  POST /kv/pull                                how a decode engine fetches the blocks of a prefill

All times are model seconds: {ENV_SPEED} (default 1) of them pass in a second, counted from {ENV_ORIGIN} (Unix time, default 0).
"""
_EXAMPLE = """\
An engine alone: write {"role": "agg", "model": "demo", "profile": {"prefill": {...}, "decode": {...}}} into spec.json (the
columns of prefill_raw_data.json and decode_raw_data.json), then
  python -m global_planner.mocker.engine --spec spec.json --port 8000
  curl -N localhost:8000/v1/completions -d '{"model": "demo", "prompt": "hello", "max_tokens": 8, "stream": true}'
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one engine until it is told to end. 0: ended as told; 2: the specification or the port is of no use."""
    parent = os.getppid()
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    _die_with_parent(parent)
    try:
        spec = read_spec(options.spec)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(spec, options, clock_from_environment(), parent))
    except (EngineSpecError, OSError) as error:
        print(f"engine: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def read_spec(path: Path) -> EngineSpec:
    """The specification in a JSON file, as `raw_spec` wrote it. Raises EngineSpecError and OSError."""
    try:
        raw = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise EngineSpecError(f"{path}: not valid JSON: {error}") from error
    return spec_from_raw(raw, source=str(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m global_planner.mocker.engine",
        description=_ABOUT,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--spec", type=Path, required=True, metavar="FILE", help="JSON: role, model, profile and limits")
    parser.add_argument("--replica-id", default=f"engine-{os.getpid()}", metavar="ID", help="default: engine-PID")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free port")
    parser.add_argument("--port-file", type=Path, metavar="FILE", help='where {"port": N, "pid": N} is written once it listens')
    parser.add_argument(
        "--ready-at", type=float, default=0.0, metavar="S", help="model time at which it serves (default: at once)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=120.0,
        metavar="S",
        help="model seconds for what is in flight after SIGTERM (default: %(default)g)",
    )
    return parser


async def _run(spec: EngineSpec, options: argparse.Namespace, clock: SpeedClock, parent: int) -> None:
    loop = asyncio.get_running_loop()
    server = EngineServer(spec, replica_id=options.replica_id, ready_at_s=options.ready_at, clock=clock, loop=loop)
    listener = await server.listen(options.host, options.port)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if options.port_file is not None:
        _write_whole(options.port_file, orjson.dumps({"port": server.port, "pid": os.getpid()}))
    gc.collect()
    gc.freeze()
    while not told.is_set() and os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), PARENT_CHECK_WALL_S)
    server.drain()
    deadline = clock.now() + options.grace
    while not server.idle and clock.now() < deadline and os.getppid() == parent:  # noqa: ASYNC110 (three ends, one look)
        await asyncio.sleep(POLL_WALL_S)
    listener.close()
    for connection in tuple(server.connections):
        connection.close()
    await asyncio.sleep(0)


def _write_whole(path: Path, content: bytes) -> None:
    """Readers see the whole file or none."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


def _die_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) for SIGKILL when the parent dies; elsewhere the look at getppid each second must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
