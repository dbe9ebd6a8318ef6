"""The arbiter's HTTP over real sockets: who may say what, what becomes of it, and bodies that make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pool_planner import wire
from pool_planner.connectors.global_planner import MSGPACK, ArbiterConnector, HttpArbiter
from pool_planner.types import ClusterUnavailable, GrantBatch, Hold, Observation, PlannerStatus, Proposal, ReportBatch
from tests.api.obedient import TOKENS, Deployment, deployed


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def proposal(pool: str, wanted: int, *, at_s: float = 1000.0, load_rps: float = 2.0) -> Proposal:
    return Proposal(pool=pool, at_s=at_s, expires_at_s=at_s + 90.0, load_rps=load_rps, wanted=wanted, reasons=("a test",))


def batch(*reports: Proposal | Hold, dgd: str = "chat") -> bytes:
    return wire.encode(ReportBatch(dgd=dgd, pid=1, started_at_s=0.0, reports=reports))


async def post(deployment: Deployment, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.post(deployment.url + path, data=body, headers=headers) as answer:
        return answer.status, await answer.read()


async def ask(deployment: Deployment, body: Any, who: str = "chat") -> tuple[int, dict[str, Any]]:
    """POST /v1/scale_request."""
    status, answer = await post(deployment, "/v1/scale_request", json.dumps(body).encode(), bearer(who))
    return status, json.loads(answer)


def request(*targets: dict[str, Any], dgd: str = "chat", **more: Any) -> dict[str, Any]:
    return {
        "caller_namespace": f"prod-{dgd}",
        "graph_deployment_name": dgd,
        "k8s_namespace": "prod",
        "target_replicas": list(targets),
        "blocking": False,
        **more,
    }


def target(kind: str, replicas: int, **more: Any) -> dict[str, Any]:
    return {"sub_component_type": kind, "desired_replicas": replicas, **more}


async def test_a_planner_elsewhere_reports_and_is_granted(tmp_path: Path) -> None:
    """Its clock is another one: reports are taken as made now, and grants come back on its time."""
    async with deployed(tmp_path) as deployment:
        token = tmp_path / "token-chat"
        send = HttpArbiter(deployment.url, token_file=token)
        connector = ArbiterConnector(send, dgd="chat", started_at_s=0.0, close=send.close)
        reports = (proposal("chat-p", 2, at_s=5_000_000.0), proposal("chat-d", 3, at_s=5_000_000.0))
        for _ in range(40):
            await connector.carry_out(reports, (), 5_000_000.0)
            grants = await connector.grants(5_000_000.0)
            # A grant tells what the last round saw: what it ordered is ready in the next one.
            if deployment.have()["chat-d"] == 3 and grants["chat-d"].replicas_ready == 3:
                break
            await deployment.loop.round_after(0, 0.1)
            done = deployment.loop.last_round
            assert done is not None
            await deployment.loop.round_after(done.inputs.round_no, 2.0)
        assert deployment.have() == {"chat-p": 2, "chat-d": 3, "code-a": 0}
        assert (grants["chat-d"].at_s, grants["chat-d"].granted, grants["chat-d"].replicas_ready) == (5_000_000.0, 3, 3)
        assert set(grants) == {"chat-p", "chat-d"}

        # The token is rotated: the next call shows the new one, and is refused until the arbiter's file has it too.
        other = tmp_path / "other"
        other.write_text("not this one")
        wrong = HttpArbiter(deployment.url, token_file=other)
        with pytest.raises(ClusterUnavailable, match="401"):
            await wrong(batch(proposal("chat-p", 1)))
        token.write_text("not this one")
        wire.decode(await wrong(batch(proposal("chat-p", 1))), expect=GrantBatch)
        await wrong.close()
        await connector.close()


REFUSED: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no token": (batch(proposal("chat-p", 1)), {}, 401, "Bearer"),
    "a wrong token": (batch(proposal("chat-p", 1)), {"Authorization": "Bearer x"}, 401, "Bearer"),
    "another's pool": (batch(proposal("chat-p", 1)), bearer("code"), 403, "code may propose for code-a"),
    "no pool of ours": (batch(proposal("x", 1)), bearer("chat"), 403, "not a pool of the topology"),
    "one of its own and one of another's": (batch(proposal("chat-p", 1), proposal("code-a", 1)), bearer("chat"), 403, "code-a"),
    "may wake only": (batch(proposal("code-a", 1)), bearer("door"), 403, "may propose for nothing"),
    "not msgpack": (b"\xc1", bearer("chat"), 400, "not msgpack"),
    "another record": (wire.encode(proposal("chat-p", 1)), bearer("chat"), 400, "expected ReportBatch"),
    "another version": (batch(proposal("chat-p", 1)).replace(b"\xa1v\x01", b"\xa1v\x02"), bearer("chat"), 400, "version"),
    "too long": (b"x" * 70_000, bearer("chat"), 413, ""),
}


@pytest.mark.parametrize(("body", "headers", "code", "said"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused_reports_change_nothing(
    tmp_path: Path, body: bytes, headers: dict[str, str], code: int, said: str
) -> None:
    async with deployed(tmp_path, max_body_kb=64) as deployment:
        status, answer = await post(deployment, "/v1/proposals", body, {**headers, "Content-Type": MSGPACK})
        assert (status, said in answer.decode()) == (code, True), answer
        assert dict(deployment.loop.inbox.reports()) == {}


async def test_the_content_type_has_to_be_told(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        status, answer = await post(deployment, "/v1/proposals", batch(), {**bearer("chat"), "Content-Type": "text/plain"})
        assert (status, MSGPACK.encode() in answer) == (415, True)


async def test_a_claim_to_be_valid_for_ever_is_bounded(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        forever = Proposal(pool="chat-p", at_s=0.0, expires_at_s=1e12, load_rps=1.0, wanted=1)
        headers = {**bearer("chat"), "Content-Type": MSGPACK}
        assert (await post(deployment, "/v1/proposals", batch(forever), headers))[0] == 200
        assert deployment.loop.inbox.reports()["chat-p"].expires_at_s <= deployment.loop.now() + 3600.0


# ---- the central scaling contract -------------------------------------------------------------------------------------


async def test_a_scale_request_is_granted_and_carried_out(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        wanted = request(target("prefill", 2), target("decode", 3), predicted_load={"num_requests": 60}, blocking=True)
        status, answer = await ask(deployment, wanted)
        assert (status, answer["status"]) == (200, "success"), answer
        assert answer["current_replicas"] == {"prefill": 2, "decode": 3}
        assert deployment.have() == {"chat-p": 2, "chat-d": 3, "code-a": 0}


async def test_more_than_the_budget_is_rejected_with_the_reason(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        wanted = request(target("prefill", 6), target("decode", 6), predicted_load={"requests_per_s": 4.0})
        status, answer = await ask(deployment, wanted)
        assert (status, answer["status"]) == (200, "rejected")
        assert "asked for 6 and is granted" in answer["message"]
        assert sum(deployment.have().values()) <= 8


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown load": (request(target("prefill", 2)), "load is not known"),
    "an unknown deployment": (request(target("prefill", 2), dgd="elsewhere"), "no pool of the topology runs in"),
    "another's pool": (request(target("decode", 2), dgd="code"), "may not propose"),
    "an unknown component": (request(target("prefill", 2, component_name="x")), "0 prefill components named 'x'"),
    "one pool twice": (request(target("prefill", 1), target("prefill", 2)), "asked for twice"),
}


@pytest.mark.parametrize(("body", "said"), REJECTED.values(), ids=REJECTED.keys())
async def test_a_rejection_is_a_normal_answer(tmp_path: Path, body: dict[str, Any], said: str) -> None:
    async with deployed(tmp_path) as deployment:
        status, answer = await ask(deployment, body)
        assert (status, answer["status"], said in answer["message"]) == (200, "rejected", True), answer


async def test_the_pools_own_planner_goes_over_requests(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        headers = {**bearer("chat"), "Content-Type": MSGPACK}
        assert (await post(deployment, "/v1/proposals", batch(proposal("chat-p", 1)), headers))[0] == 200
        status, answer = await ask(deployment, request(target("prefill", 4), predicted_load={"requests_per_s": 1.0}))
        assert (status, answer["status"]) == (200, "rejected") and "has a planner" in answer["message"]


async def test_the_load_last_observed_serves_where_the_request_names_none(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        seen = Observation(pool="chat-p", at_s=1000.0, interval_s=30.0, requests=60.0)
        status = PlannerStatus(pool="chat-p", at_s=1000.0, observation=seen)
        body = wire.encode(ReportBatch(dgd="chat", pid=1, started_at_s=0.0, reports=(), statuses=(status,)))
        assert (await post(deployment, "/v1/proposals", body, {**bearer("chat"), "Content-Type": MSGPACK}))[0] == 200
        _, answer = await ask(deployment, request(target("prefill", 2)))
        assert "load is not known" not in answer["message"]
        report = deployment.loop.inbox.reports()["chat-p"]
        assert isinstance(report, Proposal) and (report.load_rps, report.wanted, report.curve) == (2.0, 2, None)


# ---- waking -------------------------------------------------------------------------------------------------------------


async def test_a_model_at_zero_is_woken_at_once(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        assert deployment.have()["code-a"] == 0
        status, answer = await post(deployment, "/v1/wake", b'{"model": "demo/code"}', bearer("door"))
        assert (status, json.loads(answer)) == (200, {"model": "demo/code", "woken": ["code-a"]})
        done = deployment.loop.last_round
        assert done is not None
        for _ in range(5):
            done = await deployment.loop.round_after(done.inputs.round_no, 5.0) or done
            if deployment.have()["code-a"] == 1:
                break
        assert deployment.have()["code-a"] == 1
        # A model that runs is not woken.
        status, answer = await post(deployment, "/v1/wake", b'{"model": "demo/chat"}', bearer("door"))
        assert json.loads(answer)["woken"] == []


WAKES: dict[str, tuple[bytes, str, int]] = {
    "may not": (b'{"model": "demo/code"}', "code", 403),
    "no such model": (b'{"model": "x"}', "door", 404),
    "no model": (b"{}", "door", 400),
    "more than a model": (b'{"model": "demo/code", "priority": 9}', "door", 400),
    "no JSON": (b"model", "door", 400),
}


@pytest.mark.parametrize(("body", "who", "code"), WAKES.values(), ids=WAKES.keys())
async def test_wakes_that_are_refused(tmp_path: Path, body: bytes, who: str, code: int) -> None:
    async with deployed(tmp_path) as deployment:
        status, answer = await post(deployment, "/v1/wake", body, bearer(who))
        assert (status, "error" in json.loads(answer)) == (code, True)
        assert deployment.have()["code-a"] == 0


# ---- what can be read ------------------------------------------------------------------------------------------------------


async def test_status_metrics_and_health(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment, aiohttp.ClientSession() as session:
        async with session.get(f"{deployment.url}/v1/status") as answer:
            assert answer.status == 401
        async with session.get(f"{deployment.url}/v1/status", headers=bearer("door")) as answer:
            told = await answer.json()
        assert told["charged_gpus"] == {"h100": 2} and told["budget_gpus"] == {"h100": 8}
        assert {pool["name"]: pool["ready"] for pool in told["pools"]} == {"chat-p": 1, "chat-d": 1, "code-a": 0}
        async with session.get(f"{deployment.url}/metrics") as answer:
            text = await answer.text()
        assert 'global_planner_charged_gpus{gpu_type="h100"} 2.0' in text
        assert 'global_planner_pool_known{pool="code-a",group="code",role="agg"} 1.0' in text
        assert "forecast" not in text
        for path in ("/healthz", "/readyz"):
            async with session.get(deployment.url + path) as answer:
                assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_what_planners_know_is_in_the_arbiters_metrics(tmp_path: Path) -> None:
    """One scrape has the whole deployment, wherever its planners run; numbers that nobody defined make no series."""
    seen = Observation(pool="chat-p", at_s=0.0, interval_s=10.0, requests=25.0, ttft_ms=310.0)
    status = PlannerStatus(pool="chat-p", at_s=10.0, observation=seen, numbers={"forecast_rps": 3.5, "evil": 1.0})
    body = wire.encode(ReportBatch(dgd="chat", pid=1, started_at_s=0.0, reports=(), statuses=(status,)))
    async with deployed(tmp_path) as deployment, aiohttp.ClientSession() as session:
        assert (await post(deployment, "/v1/proposals", body, {**bearer("chat"), "Content-Type": MSGPACK}))[0] == 200
        async with session.get(f"{deployment.url}/metrics") as answer:
            text = await answer.text()
    of = '{pool="chat-p",group="chat",role="prefill"}'
    assert f"global_planner_pool_forecast_rps{of} 3.5" in text and f"global_planner_pool_observed_rps{of} 2.5" in text
    assert f"global_planner_pool_observed_ttft_ms{of} 310.0" in text and "evil" not in text


# ---- bodies that make no sense -------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["caller_namespace", "graph_deployment_name", "k8s_namespace", "target_replicas", "blocking", "predicted_load"]


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A sound scale request with some of its fields replaced, dropped or added."""
    body: dict[str, Any] = request(target("prefill", 2), predicted_load={"requests_per_s": 1.0})
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        body[name] = draw(VALUES)
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=1)):
        body.pop(name, None)
    if draw(st.booleans()):
        body["target_replicas"] = [{"sub_component_type": draw(VALUES), "desired_replicas": draw(VALUES)}]
    return json.dumps(body).encode()


async def test_malformed_bodies_never_break_it(tmp_path: Path) -> None:
    """Whatever comes in, the answer says what is wrong, and the rounds go on."""
    async with deployed(tmp_path, max_body_kb=64) as deployment, aiohttp.ClientSession() as session:
        bodies: list[tuple[str, bytes]] = []

        @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
        @given(st.sampled_from(["/v1/proposals", "/v1/wake", "/v1/scale_request"]), st.binary(max_size=60) | spoiled())
        def collect(path: str, body: bytes) -> None:
            bodies.append((path, body))

        collect()
        sound = batch(proposal("chat-p", 2))
        for cut in range(0, len(sound), 7):
            bodies += [("/v1/proposals", sound[:cut]), ("/v1/proposals", sound[:cut] + b"\xff" + sound[cut + 1 :])]
        for path, body in bodies:
            kind = MSGPACK if path == "/v1/proposals" else "application/json"
            async with session.post(
                deployment.url + path, data=body, headers={**bearer("chat"), "Content-Type": kind}
            ) as answer:
                assert answer.status in (200, 400, 403), (path, body)
                content = await answer.read()
                if answer.status == 200 and path == "/v1/scale_request":
                    assert json.loads(content)["status"] in ("success", "rejected")
        before = deployment.loop.last_round
        assert before is not None
        assert await deployment.loop.round_after(before.inputs.round_no, 10.0) is not None
        assert sum(deployment.have().values()) <= 8
