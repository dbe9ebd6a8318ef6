"""[I/O] One span a request, for OpenTelemetry: the extra `otel`, and nothing at all without it.

A client's `traceparent` is the span's parent; engines get the span's own, so that theirs hang below it. Spans go out in
batches, from a thread of the library, to an OTLP collector over HTTP.
"""

from __future__ import annotations

from typing import Any

from router.accounting import Progress
from router.config import ConfigError, TracingConfig
from router.message import Request

_PARENT = b"traceparent:"


class Tracing:
    """Makes spans. Raises ConfigError when the extra is not installed."""

    def __init__(self, config: TracingConfig) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError("tracing: needs the extra 'otel' (pip install 'global-planner[otel]')") from error
        self._propagate: Any = propagate
        self._trace: Any = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": config.service_name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint)))
        self._tracer = self._provider.get_tracer("pool-router")

    def begin(self, request: Request) -> Any:
        """The span of a request that has just come; the request's headers name it from now on."""
        told = [line for line in request.forward if line[: len(_PARENT)].lower() == _PARENT]
        parent = told[0].split(b":", 1)[1].strip().decode("latin-1") if told else ""
        context = self._propagate.extract({"traceparent": parent}) if parent else None
        span = self._tracer.start_span(request.path.decode("latin-1"), context=context, kind=self._trace.SpanKind.SERVER)
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier, self._trace.set_span_in_context(span))
        kept = [line for line in request.forward if line[: len(_PARENT)].lower() != _PARENT]
        request.forward = [*kept, b"traceparent: %b\r\n" % carrier["traceparent"].encode()]
        return span

    def end(self, span: Any, progress: Progress) -> None:
        """The request has ended."""
        serving, exchange = progress.serving, progress.exchange
        told = {
            "gen_ai.request.model": progress.call.model,
            "gen_ai.usage.input_tokens": progress.ask.isl_tokens,
            "gen_ai.usage.output_tokens": progress.tokens,
            "http.response.status_code": exchange.status if exchange is not None else None,
            "router.request_id": progress.request.request_id.decode("latin-1"),
            "router.outcome": progress.outcome,
            "router.priority": progress.call.priority or 0,
            "router.pool": serving[0].name if serving else None,
            "router.endpoint": serving[1].id if serving else None,
            "router.ttft_s": progress.ttft_s,
        }
        span.set_attributes({name: value for name, value in told.items() if value is not None})
        if progress.outcome in ("failed", "shed"):
            span.set_status(self._trace.StatusCode.ERROR, progress.outcome)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
