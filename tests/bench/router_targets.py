"""What `tests.bench.router` measures: the engines alone, our router in front of them, and peers, each in its own environment.

A peer is installed once under `.cache/peers/`, from PyPI with uv or from Debian's package; none of it touches this project's
environment or the machine. The Python router of vLLM's production stack is on neither; name its command with
`--peer production-stack=COMMAND`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNKS, CHUNK_INTERVAL_MS = 200, 20
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".cache" / "peers"
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 180.0  # LiteLLM takes its time


def on_core(core: int) -> Callable[[], None]:
    """For a child process: to that core, and to die with us."""

    def before_exec() -> None:
        os.sched_setaffinity(0, {core})
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    return before_exec


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether it listens in time; what it said is in the log."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return True
        time.sleep(0.1)
    return False


@dataclass
class Target:
    """Something that answers on `port`; `process` is what its CPU is counted for (None: not counted)."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None

    def cpu_s(self) -> float:
        """CPU seconds of the process and its children so far."""
        if self.process is None:
            return 0.0
        return sum(_cpu_s(pid) for pid in _family(self.process.pid))

    @contextlib.contextmanager
    def ahead(self, priority: int) -> Iterator[None]:
        """At a real-time priority meanwhile: nobody else gets the core while this has work."""
        threads = (
            [int(thread) for pid in _family(self.process.pid) for thread in os.listdir(f"/proc/{pid}/task")]
            if self.process
            else []
        )
        try:
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
            yield
        finally:
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))

    def rss_mb(self) -> float | None:
        if self.process is None:
            return None
        kilobytes = 0
        for pid in _family(self.process.pid):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        return kilobytes / 1024


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ---- starting -------------------------------------------------------------------------------------------------------


def engines(folder: Path, core: int, log: Path) -> list[Target]:
    """Two engines that answer at once. Exits where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("a C compiler (cc) is needed for the engines behind the router; install gcc")
    binary = folder / "engine"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(HERE / "engine.c")], check=True)
    made = []
    for name in ("engine1", "engine2"):
        port = free_port()
        command = [str(binary), str(port), str(CHUNKS), str(CHUNK_INTERVAL_MS)]
        process = subprocess.Popen(command, preexec_fn=on_core(core), stderr=log.open("ab"))
        if not wait_for(port, process, log):
            sys.exit(f"the engine does not start:\n{log.read_text()[-2000:]}")
        made.append(Target(name, port, process))
    return made


def start(name: str, command: str, ports: list[int], core: int, log: Path) -> Target | None:
    """Start a router on its core; None (and why, on standard error) where it does not come up."""
    port = free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    words = shlex.split(command.format(port=port, metrics=free_port(), engine1=urls[0], engine2=urls[1]))
    environment = {
        **os.environ,
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        # It refuses to start without a key otherwise; it listens on loopback only, and nobody is measured with keys.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    process = subprocess.Popen(
        words,
        preexec_fn=on_core(core),
        stdout=log.open("ab"),
        stderr=log.open("ab"),
        env=environment,
        cwd=ROOT,
    )
    if wait_for(port, process, log):
        return Target(name, port, process)
    print(f"{name} does not listen; left out:\n{log.read_text()[-1500:]}", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    return None


def ours(folder: Path, engines_at: list[int]) -> dict[str, str]:
    """Commands of our router: an aggregated pool with a default configuration, and the hand-off."""
    urls = [f"http://127.0.0.1:{port}" for port in engines_at]
    pools = {
        "ours": [{"name": "a", "role": "agg", "endpoints": urls}],
        "ours_pd": [
            {"name": "p", "role": "prefill", "endpoints": urls[:1]},
            {"name": "d", "role": "decode", "endpoints": urls[1:]},
        ],
    }
    commands = {}
    for name, described in pools.items():
        config = folder / f"{name}.json"
        config.write_text(json.dumps({"models": [{"model": "m", "pools": described}]}))
        commands[name] = f"{sys.executable} -m router --config {config} --port {{port}} --admin-port 0"
    return commands


# ---- peers ----------------------------------------------------------------------------------------------------------


def peer_command(name: str, folder: Path) -> str:
    """The command of a known peer, installed if it is not yet. Raises OSError or subprocess.CalledProcessError."""
    return KNOWN[name](folder)


def _environment(name: str, package: str) -> Path:
    """The folder of a peer's commands, in an environment of its own."""
    folder = PEERS / name
    if not (folder / ".installed").exists():
        uv = shutil.which("uv") or str(ROOT / ".cache" / "uv" / "bin" / "uv")
        print(f"installing {package} into .cache/peers/{name}", file=sys.stderr)
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python"), package], check=True)
        (folder / ".installed").touch()
    return folder / "bin"


def _sglang(folder: Path) -> str:
    python = _environment("sglang-router", "sglang-router==0.3.2") / "python"
    options = "--host 127.0.0.1 --port {port} --worker-urls {engine1} {engine2} --policy round_robin --log-level error"
    return f"{python} -m sglang_router.launch_router {options} --prometheus-port {{metrics}}"


def _vllm(folder: Path) -> str:
    command = _environment("vllm-router", "vllm-router") / "vllm-router"
    options = "--host 127.0.0.1 --port {port} --worker-urls {engine1} {engine2} --policy round_robin --log-level error"
    return f"{command} {options} --prometheus-port {{metrics}}"


def _litellm(folder: Path) -> str:
    command = _environment("litellm", "litellm[proxy]") / "litellm"
    config = folder / "litellm.yaml"
    deployment = "  - {{model_name: m, litellm_params: {{model: openai/m, api_base: '{{{engine}}}/v1', api_key: x}}}}"
    template = "model_list:\n" + "\n".join(deployment.format(engine=f"engine{i}") for i in (1, 2)) + "\n"
    script = folder / "litellm.sh"
    # The engines' addresses are known only when the command starts.
    config.with_suffix(".template").write_text(template)
    script.write_text(
        f'sed -e "s|{{engine1}}|$1|" -e "s|{{engine2}}|$2|" {config.with_suffix(".template")} > {config}\n'
        f"exec {command} --config {config} --host 127.0.0.1 --port $3 --num_workers 1\n"
    )
    return f"sh {script} {{engine1}} {{engine2}} {{port}}"


def _nginx(folder: Path) -> str:
    """Debian's nginx, unpacked and not installed."""
    binary = shutil.which("nginx") or str(PEERS / "nginx/usr/sbin/nginx")
    if not Path(binary).exists():
        home = PEERS / "nginx"
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "-qq", "download", "nginx"], cwd=home, check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["dpkg", "-x", str(next(home.glob("nginx_*.deb"))), str(home)], check=True)
    script, config = folder / "nginx.sh", folder / "nginx.conf"
    temporary = " ".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; {temporary}
  upstream engines {{ server ENGINE1; server ENGINE2; keepalive 256; }}
  server {{ listen 127.0.0.1:PORT; keepalive_requests 1000000; location / {{ proxy_pass http://engines;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""
    (folder / "nginx.template").write_text(text)
    replace = 'sed -e "s|ENGINE1|${1#http://}|" -e "s|ENGINE2|${2#http://}|" -e "s|PORT|$3|"'
    script.write_text(f"{replace} {folder}/nginx.template > {config}\nexec {binary} -p {folder} -c {config} -g 'user root;'\n")
    return f"sh {script} {{engine1}} {{engine2}} {{port}}"


def _bare(folder: Path) -> str:
    """What a router costs that does nothing: see `tests.bench.bare_router`."""
    return f"{sys.executable} -m tests.bench.bare_router --port {{port}} --engines {{engine1}} {{engine2}}"


KNOWN: dict[str, Callable[[Path], str]] = {
    "bare": _bare,
    "sglang-router": _sglang,
    "vllm-router": _vllm,
    "litellm": _litellm,
    "nginx": _nginx,
}
