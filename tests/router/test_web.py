"""Clients over the open web: TLS, web pages of other origins, and what each key's holder has had."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from router.config import ConfigError, TlsConfig
from router.web import tls_of
from tests.router.conftest import MODEL, StartEngine, StartRouter, until
from tests.router.engines import DONE, SSE_HEAD, answering, chat_chunk, chunk, sending

PAGE = "https://chat.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


async def test_pages_of_allowed_origins_may_ask(start_router: StartRouter, start_engine: StartEngine) -> None:
    theirs = b"access-control-allow-origin: https://engine.example\r\n"
    head = SSE_HEAD.replace(b"transfer-encoding", theirs + b"transfer-encoding")
    engine = await start_engine(script=sending(head, chunk(chat_chunk("x")), chunk(DONE), b"0\r\n\r\n"))
    listen = {"port": 0, "cors_origins": [PAGE]}
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], listen=listen)
    url = router.base + "/v1/chat/completions"
    async with router.session.options(url, headers=PREFLIGHT) as answer:
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in answer.headers["access-control-allow-headers"]
    async with router.session.options(url, headers={**PREFLIGHT, "Origin": "https://evil.example"}) as answer:
        assert "access-control-allow-origin" not in answer.headers
    body = {"model": MODEL, "messages": [], "stream": True}
    async with router.session.post(url, json=body, headers={"Origin": PAGE}) as answer:
        # One answer to who may read it: the router's, not the engine's.
        assert answer.headers.getall("access-control-allow-origin") == [PAGE]
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert (await answer.read()).endswith(DONE)
    async with router.session.post(url, json={"model": "nope"}, headers={"Origin": PAGE}) as answer:
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (404, PAGE)
    assert "origin" not in engine.calls[0].headers
    async with router.session.post(url, json=body) as answer:
        assert "vary" not in answer.headers


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(cert), *names], check=True, capture_output=True)
    return str(cert), str(key)


async def test_tls(start_router: StartRouter, start_engine: StartEngine, certificate: tuple[str, str]) -> None:
    """A stream and a large body over TLS, and a client that goes away; plain HTTP gets nothing."""
    cert, key = certificate
    engine = await start_engine()
    listen = {"port": 0, "tls": {"certificate": cert, "key": key}}
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], listen=listen)
    trust = ssl.create_default_context(cafile=cert)
    url = f"https://127.0.0.1:{router.port}/v1/chat/completions"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 500_000}], "stream": True}
    async with router.session.post(url, json=body, ssl=trust) as answer:
        assert answer.status == 200
        assert (await answer.read()).endswith(DONE)
    engine.itl_s = 5.0
    async with router.session.post(url, json=body, ssl=trust):
        pass
    await until(lambda: engine.running == 0)
    with pytest.raises(aiohttp.ClientError):
        await router.session.get(router.base + "/health")


def test_a_certificate_that_is_none(certificate: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are no certificate with its key"):
        tls_of(TlsConfig(certificate=certificate[0], key=str(tmp_path / "missing")))


async def test_tokens_by_key(start_router: StartRouter, start_engine: StartEngine, tmp_path: Path) -> None:
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    engine = await start_engine(script=answering(200, {"choices": [], **usage}))
    keys = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("alice", "bob")]
    log = tmp_path / "access.log"
    pools = [{"name": "a", "role": "agg", "endpoints": [engine.url]}]
    router = await start_router(pools, keys=keys, access_log=str(log))
    url = router.base + "/v1/chat/completions"
    for who in ("alice", "bob", "alice"):
        headers = {"Authorization": f"Bearer {who}"}
        async with router.session.post(url, json={"model": MODEL, "messages": []}, headers=headers) as answer:
            assert answer.status == 200
    metrics = await router.metrics()
    for line in (
        'key_requests_total{key="alice"} 2',
        'key_prompt_tokens_total{key="alice"} 14',
        'key_answer_tokens_total{key="bob"} 5',
    ):
        assert f"global_planner_router_{line}\n" in metrics
    assert [line.split('"key":')[1].split(",")[0] for line in log.read_text().splitlines()] == ['"alice"', '"bob"', '"alice"']


async def test_half_open(start_router: StartRouter, start_engine: StartEngine) -> None:
    """An engine that fails requests while it says that it is well: let in again by its probe, one failure is enough now."""
    bad, good = await start_engine("bad", script=answering(500, {})), await start_engine("good")
    health = {"failures": 3, "backoff_s": 4.0}
    pools = [{"name": "a", "role": "agg", "pick": "round_robin", "endpoints": [bad.url, good.url]}]
    router = await start_router(pools, health=health, speed=20.0, retry={"ratio": 1.0})
    name = bad.url.removeprefix("http://")
    while (await router.endpoint(name))["healthy"]:
        assert (await router.chat())[0] == 200
    assert len(bad.calls) == 3
    await asyncio.sleep(0.3)  # 6 model seconds: probed and let in again
    for _ in range(6):
        assert (await router.chat())[0] == 200
    assert len(bad.calls) == 4
    # Its second success in the meantime would have made it as good as any.
    bad.script = None
    await asyncio.sleep(0.8)
    for _ in range(4):
        assert (await router.chat())[0] == 200
    assert router.app.endpoints.pools["a"].endpoints[name].failures == 0
