"""`environment: virtual` as a user runs it: a planner process, an outside system in Python, and bodies that make no sense."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pool_planner.__main__ import main
from pool_planner.connectors.virtual_client import VirtualClient
from pool_planner.types import ClusterUnavailable
from tests.standalone.front_door import FrontDoor
from tests.standalone.process import SPEED, Planner, config


@pytest.fixture
def door() -> Iterator[FrontDoor]:
    opened = FrontDoor(namespace="demo_agg", speed=SPEED, rps=1.5)
    yield opened
    opened.close()


def test_an_outside_system_executes_decisions(door: FrontDoor, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("sesame\n")
    given = config(door.url, environment="virtual", max_gpu_budget=32, metric_reporting_prometheus_port=_free_port())
    with Planner(given, "--listen", "127.0.0.1:0", "--token-file", str(token)) as planner:
        url = f"http://127.0.0.1:{planner.until('listening', what='decisions')['port']}"
        with pytest.raises(ClusterUnavailable, match="401"):
            VirtualClient(url).wait(wait_s=0.0)
        client = VirtualClient(url, token="sesame")

        # Until the outside system says what it has, nothing is decided: unknown is not zero.
        held = planner.until("decision", outcome="hold", reasons=["what the pool has is not known yet"])
        assert (held["wanted"], held["ordered"]) == (None, None)
        assert client.wait(wait_s=0.0) is None

        client.report({"VllmWorker": 1})
        decision = client.wait(wait_s=20.0)
        assert decision is not None and decision.replicas["VllmWorker"] > 1 and decision.reasons["VllmWorker"]
        client.complete(decision)
        line = planner.until("decision", outcome="proposal", ready=decision.replicas["VllmWorker"])
        assert line["load_rps"] == pytest.approx(1.5, rel=0.3)

        door.down = True
        assert "no observation" in planner.until("trouble")["text"]
        door.down = False
        planner.until("decision", outcome="proposal")

        exposed = _get(f"http://127.0.0.1:{given['metric_reporting_prometheus_port']}/metrics")
        assert 'global_planner_pool_wanted{pool="VllmWorker",role="agg"}' in exposed
        assert _get(f"http://127.0.0.1:{given['metric_reporting_prometheus_port']}/healthz") == "ok\n"
        assert planner.stop() == 0
        planner.until("stopped")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["replicas", "VllmWorker", "x"]), inner),
    max_leaves=6,
)


def test_malformed_bodies_are_refused_and_change_nothing(door: FrontDoor) -> None:
    with Planner(config(door.url, environment="virtual"), "--listen", "127.0.0.1:0", "--replicas", "VllmWorker=1") as planner:
        url = f"http://127.0.0.1:{planner.until('listening', what='decisions')['port']}"

        @settings(max_examples=150)
        @given(
            st.binary(max_size=40) | ANY_JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(["1", "-1", "x"])
        )
        def attack(body: bytes, number: str) -> None:
            for method, path in (("PUT", "/v1/replicas"), ("POST", f"/v1/decisions/{number}/complete")):
                status = _status(method, url + path, body)
                sound = method == "PUT" and status == 200 and isinstance(json.loads(body)["replicas"], dict)
                assert status in (400, 409) or sound

        attack()
        assert _status("PUT", f"{url}/v1/replicas", b" " * 70_000) == 413
        assert _status("GET", f"{url}/v1/decision?wait_s=nan", None) == 400
        assert json.loads(_get(f"{url}/v1/state"))["pools"] == ["VllmWorker"]
        assert planner.stop() == 0


BAD_INPUT = {
    "open to others": (("--listen", "0.0.0.0:0"), "--token-file"),
    "no address": (("--listen", "here"), "HOST:PORT"),
    "a pool of another role": (("--pool", "prefill=x"), "has no prefill pool"),
    "an unknown pool": (("--replicas", "x=1"), "no such pool (has: VllmWorker)"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_told_and_ends_with_2(arguments: tuple[str, ...], said: str) -> None:
    given = json.dumps(config("http://127.0.0.1:9/metrics", environment="virtual"))
    result = CliRunner().invoke(main, ["--config", given, *arguments])
    assert (result.exit_code, said in result.output) == (2, True), result.output


def _status(method: str, url: str, body: bytes | None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
