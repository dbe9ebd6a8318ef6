"""One source of metrics a pool, and prompt lengths from a real tokenizer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from router.config import ConfigError
from router.duplicates import namespaces_in
from router.openai import Lengths, parse
from router.tokens import AT_ONCE_CHARS, Tokenizer
from tests.router.conftest import MODEL, StartEngine, StartRouter

OWN = b"""# TYPE dynamo_frontend_requests_total counter
dynamo_frontend_requests_total{model="m",dynamo_namespace="demo-chat"} 7
dynamo_frontend_requests_total{dynamo_namespace="other",model="m"} 7
vllm:num_requests_running{model_name="m"} 1
"""


def test_namespaces() -> None:
    assert namespaces_in(OWN) == {"demo_chat", "other"}
    assert namespaces_in(b"vllm:num_requests_running 1\n# dynamo_frontend_requests_total") == frozenset()


async def test_a_frontend_that_counts_too_is_told_of(start_router: StartRouter, start_engine: StartEngine) -> None:
    """The pool's own frontend shows the same series: said once, shown in state and metrics; gone when it stops."""
    engine = await start_engine(exposition=OWN)
    plain = await start_engine("plain")
    said: list[str] = []
    router = await start_router(
        [
            {"name": "a", "role": "agg", "dynamo_namespace": "demo-chat", "endpoints": [engine.url]},
            {"name": "b", "role": "agg", "endpoints": [plain.url]},
        ],
    )
    router.app.duplicates._say = said.append
    for _ in range(2):
        await router.app.duplicates.look()
    assert len(said) == 1
    assert "pool a: its own frontend exports the requests of 'demo_chat' too" in said[0]
    assert [pool["duplicate_source"] for pool in (await router.state())["pools"]] == [True, False]
    metrics = await router.metrics()
    assert 'duplicate_source{dynamo_namespace="demo_chat",model="demo/chat",pool="a",role="agg"} 1' in metrics
    engine.exposition = b""
    await router.app.duplicates.look()
    assert router.app.duplicates.found == {"a": False, "b": False}


async def test_a_pool_whose_frontend_is_the_source_is_not_shown_here(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    one, two = await start_engine("one", exposition=OWN), await start_engine("two")
    pools = [
        {"name": "a", "role": "agg", "dynamo_namespace": "demo-chat", "endpoints": [one.url], "metrics_source": "frontend"},
        {"name": "b", "role": "agg", "endpoints": [two.url]},
    ]
    router = await start_router(pools)
    assert (await router.chat())[0] == 200
    await router.app.duplicates.look()
    assert router.app.duplicates.found == {"b": False}
    metrics = await router.metrics()
    assert 'dynamo_frontend_requests_total{dynamo_namespace="b"' in metrics
    assert 'dynamo_namespace="demo_chat"' not in metrics
    # What the router did and who works for it stays visible.
    assert 'global_planner_router_requests_total{model="demo/chat",priority="0",outcome="completed"} 1' in metrics


# ---- tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> str:
    """A tokenizer for which every word is a token."""
    library = Library(models.WordLevel({"<unk>": 0, "hello": 1}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    return str(path)


async def test_prompts_are_counted(words: str) -> None:
    tokenizer = Tokenizer(words)
    for prompt, tokens in (
        ('"hello hello you"', 3),
        ('["a b", "c"]', 3),
        ('""', 0),
        ('"\\ud800 x"', 2),
        ("[1, 2]", 0),
        ('"' + "w " * AT_ONCE_CHARS + '"', AT_ONCE_CHARS),
        ('"' + "w " * 1_000_000 + '"', 1_000_000),
    ):
        assert await tokenizer.count(parse(b'{"model":"m","prompt":%b}' % prompt.encode())) == tokens


async def test_what_a_template_adds_is_learned(words: str) -> None:
    lengths, tokenizer = Lengths(), Tokenizer(words)
    call = parse(b'{"model":"m","messages":[{"role":"user","content":"one two three"}]}')
    call.counted = await tokenizer.count(call)
    assert lengths.isl(call) == 3
    for _ in range(60):
        lengths.learn_isl(call, 15)
    assert lengths.isl(call) == 15


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer.json is not a"):
        Tokenizer(str(path))


async def test_the_pool_follows_the_counted_length(start_router: StartRouter, start_engine: StartEngine, words: str) -> None:
    """100 words of one letter: an estimate by characters would say 50 tokens."""
    short, long = await start_engine("s"), await start_engine("l")
    pools = [
        {"name": "s", "role": "agg", "isl_max_tokens": 60, "endpoints": [short.url]},
        {"name": "l", "role": "agg", "endpoints": [long.url]},
    ]
    router = await start_router(pools, model={"tokenizer": words})
    await router.chat("a " * 100)
    await router.chat("a " * 20)
    assert (len(short.calls), len(long.calls)) == (1, 1)
    await asyncio.gather(*(router.chat("a " * 5000) for _ in range(3)))
    assert len(long.calls) == 4
    assert router.app.models[MODEL].tokenizer is not None
