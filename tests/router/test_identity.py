"""API keys, and what headers and keys say about a request: body first, then header, then key."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from router.config import KeyConfig
from router.identity import Keys, complete
from router.openai import BadRequest, Call, parse
from tests.router.conftest import MODEL, StartEngine, StartRouter

SECRET = "sk-test"
KEY = KeyConfig(name="team", sha256=sha256(SECRET.encode()).hexdigest(), priority=2, max_priority=5, ttft_ms=100.0)


def call(**body: Any) -> Call:
    return parse(json.dumps({"model": "m", **body}).encode())


SOURCES = [
    # body, headers -> priority, TTFT, ITL with the key
    ({}, {}, (2, 100.0, None)),
    ({}, {"priority": b"3", "ttft_ms": b"50", "itl_ms": b"9.5"}, (3, 50.0, 9.5)),
    ({"nvext": {"agent_hints": {"priority": 4}}, "extra_args": {"ttft_target": 7}}, {"priority": b"3"}, (4, 7.0, None)),
    ({"nvext": {"agent_hints": {"priority": 99}}}, {}, (5, 100.0, None)),
    ({}, {"ttft_ms": b"-1"}, (2, 100.0, None)),
]


@pytest.mark.parametrize(("body", "headers", "filled"), SOURCES)
def test_who_says_what(body: dict[str, Any], headers: dict[str, bytes], filled: tuple[Any, ...]) -> None:
    asked = call(**body)
    complete(asked, headers, KEY)
    assert (asked.priority, asked.ttft_ms, asked.itl_ms) == filled


@pytest.mark.parametrize("value", [b"soon", b"nan", b"inf", b""])
def test_headers_that_are_no_numbers(value: bytes) -> None:
    with pytest.raises(BadRequest, match="x-request-priority"):
        complete(call(), {"priority": value}, None)


def test_keys() -> None:
    keys = Keys([KEY])
    assert keys.owner(b"Bearer sk-test") is KEY
    assert keys.owner(b"bearer  sk-test ") is KEY
    for wrong in (b"", b"Bearer", b"Bearer ", b"Bearer sk-tes", b"Basic sk-test", b"sk-test"):
        with pytest.raises(BadRequest) as refusal:
            keys.owner(wrong)
        assert refusal.value.status == 401
    assert Keys([]).owner(b"") is None


async def test_keys_at_the_door(start_router: StartRouter, start_engine: StartEngine) -> None:
    """The right key comes in and stays here; a wrong one, or one for other models, does not. Health needs none."""
    engine = await start_engine()
    other = KEY.model_copy(update={"name": "other", "models": (), "sha256": sha256(b"sk-other").hexdigest()})
    keys = [KEY.model_dump(), other.model_dump()]
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], keys=keys)
    for path, secret, status, code in (
        ("/health", None, 200, None),
        ("/v1/models", None, 401, "missing_api_key"),
        ("/v1/models", SECRET, 200, None),
        ("/v1/chat/completions", "wrong", 401, "invalid_api_key"),
        ("/v1/chat/completions", "sk-other", 404, "model_not_found"),
        ("/v1/chat/completions", SECRET, 200, None),
    ):
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        body = {"model": MODEL, "messages": []} if "chat" in path else None
        method = "POST" if body else "GET"
        async with router.session.request(method, router.base + path, json=body, headers=headers) as answer:
            assert answer.status == status, (path, secret)
            assert code is None or (await answer.json())["error"]["code"] == code
    assert "authorization" not in engine.calls[0].headers


async def test_without_keys_the_clients_own_goes_to_the_engine(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine()
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    body = {"model": MODEL, "messages": []}
    async with router.session.post(
        router.base + "/v1/chat/completions", json=body, headers={"Authorization": "Bearer engine-key", "X-TTFT-Target-Ms": "9"}
    ) as answer:
        assert answer.status == 200
    assert engine.calls[0].headers["authorization"] == "Bearer engine-key"
    assert engine.calls[0].headers["x-ttft-target-ms"] == "9"
