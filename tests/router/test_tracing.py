"""Spans: what a real exporter sends to a collector, and that engines hang their own below it."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.router.conftest import MODEL, StartEngine, StartRouter
from tests.router.engines import DONE

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_spans_go_to_a_collector(start_router: StartRouter, start_engine: StartEngine) -> None:
    got: list[Any] = []

    async def collect(request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        message = ExportTraceServiceRequest.FromString(body)
        got.extend(span for one in message.resource_spans for scope in one.scope_spans for span in scope.spans)
        return web.Response(content_type="application/x-protobuf")

    collector = web.Application()
    collector.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(collector)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    engine = await start_engine()
    router = await start_router(
        [{"name": "a", "role": "agg", "endpoints": [engine.url]}],
        tracing={"endpoint": f"http://127.0.0.1:{port}/v1/traces"},
    )
    body = {"model": MODEL, "messages": [], "stream": True}
    headers = {"Traceparent": f"00-{TRACE}-{PARENT}-01"}
    async with router.session.post(router.base + "/v1/chat/completions", json=body, headers=headers) as answer:
        assert (await answer.read()).endswith(DONE)
    assert (await router.chat())[0] == 200
    await router.app.stop()
    await runner.cleanup()
    first, second = got
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert second.trace_id.hex() != TRACE
    assert engine.calls[0].headers["traceparent"] == f"00-{TRACE}-{first.span_id.hex()}-01"
    told = {one.key: one.value for one in first.attributes}
    assert told["gen_ai.request.model"].string_value == MODEL
    assert told["router.outcome"].string_value == "completed"
    assert (told["router.pool"].string_value, told["http.response.status_code"].int_value) == ("a", 200)
