"""OpenTelemetry spans of requests for predictions; OpenTelemetry is an optional extra.

The span of a request starts with the request. Its child spans are created after the response, from times
recorded on the way: `validate`, `queue`, and `infer` for each call of the model. Attributes follow
https://opentelemetry.io/docs/specs/semconv/http/http-spans/; other attributes begin with `serving.`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving import __version__
from serving.hooks import InferenceEvent, RequestHook
from serving.request_context import RequestContext
from serving.telemetry.trace_context import ModelCall, TraceContext, current

log = logging.getLogger("serving.traces")
_W3C = TraceContextTextMapPropagator()
_TRACE_HEADERS = {b"traceparent": "traceparent", b"tracestate": "tracestate"}
_RESOURCE = {"service.name": "serving", "service.version": __version__}


class SpanIds(RandomIdGenerator):
    """Generates span ids; model code may have received the id of a span before the span is created."""

    next_span_id: int | None = None
    """The id of the next span, if it is known."""

    def generate_span_id(self) -> int:
        """Return the id of the next span."""
        known, self.next_span_id = self.next_span_id, None
        return known or super().generate_span_id()


class _Request(NamedTuple):
    """A traced request; `epoch` is the time when the performance counter was 0, in nanoseconds since 1970."""

    span: Span
    trace: TraceContext
    epoch: int

    def to_epoch_ns(self, moment: float) -> int:
        """Return a time of the performance counter, in seconds, as nanoseconds since 1970."""
        return self.epoch + int(moment * 1e9)


class TraceRecorder(RequestHook):
    """Creates the spans of requests, and exports them as OpenTelemetry's environment variables define.

    It has its own tracer provider, because MLflow or another library may use the global one.
    """

    def __init__(self) -> None:
        self._ids = SpanIds()
        self._provider = TracerProvider(
            resource=Resource.create({}).merge(Resource(_RESOURCE)).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("serving", __version__)

    def on_request(self, context: RequestContext) -> None:
        """Start the span of a request, in the trace of its client if the headers name one."""
        carrier: dict[str, list[str]] = {}
        for header, value in context.headers:
            if header in _TRACE_HEADERS:
                carrier.setdefault(_TRACE_HEADERS[header], []).append(value.decode("latin-1"))
        name, attributes = _name_and_attributes(context)
        epoch = time.time_ns() - time.perf_counter_ns()
        began, kind = epoch + int(context.started * 1e9), SpanKind.SERVER
        span = self._tracer.start_span(name, _W3C.extract(carrier), kind, attributes, start_time=began)
        own = span.get_span_context()
        ids, state = (f"{own.trace_id:032x}", f"{own.span_id:016x}"), own.trace_state.to_header()
        trace = TraceContext(*ids, own.trace_flags, state)
        context.trace_id, context.state["span"] = trace.trace_id, _Request(span, trace, epoch)
        current.set(trace)

    def on_response(self, event: InferenceEvent) -> None:
        """Create the child spans of a successful request, and end its span."""
        request: _Request = event.context.state["span"]
        if request.span.is_recording():
            rows = sum(len(indices) for indices, _ in event.parts)
            request.span.set_attributes({"serving.rows": rows, "serving.cached": not event.parts})
            self._end(request, event.context, 200, event.ended)

    def on_error(self, context: RequestContext, status: int, error: Exception) -> None:
        """End the span of a request that failed; client errors do not set the span's status to error."""
        request: _Request | None = context.state.get("span")
        if request and request.span.is_recording():
            request.span.set_attribute("error.type", type(error).__name__)
            if status >= 500:
                request.span.set_status(StatusCode.ERROR)
            self._end(request, context, status, time.perf_counter())

    async def aclose(self, seconds: float) -> None:
        """Export the remaining spans within this number of seconds."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the event loop has closed
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await sent.wait()
        except TimeoutError:
            log.warning("traces could not be sent within %g s", seconds)

    def _end(self, request: _Request, context: RequestContext, status: int, ended: float) -> None:
        model, version = context.model_labels
        if model:
            attributes = {"serving.model.name": model, "serving.model.version": version or ""}
            request.span.set_attributes(attributes)
        if context.scope:
            request.span.set_attribute("http.response.status_code", status)
        if taken := context.leased_at:
            self._record_child_spans(request, taken, ended)
        request.span.end(request.to_epoch_ns(ended))

    def _record_child_spans(self, request: _Request, taken: float, ended: float) -> None:
        trace = request.trace
        self._record(request, "validate", taken, trace.queued or ended)
        if trace.queued:
            self._record(request, "queue", trace.queued, trace.calls[0].started if trace.calls else ended)
        for call in trace.calls:
            self._record_call(request, call, ended)

    def _record_call(self, request: _Request, call: ModelCall, ended: float) -> None:
        """Record the span that model code continues; it belongs to one request, and the others link to it."""
        home, links = call.home, [_link(call.home, call.span_id)]
        if request.trace is home:
            self._ids.next_span_id = int(call.span_id, 16)
            links = [_link(trace, trace.span_id) for trace in call.traces if trace is not home]
        attributes = {"serving.batch.rows": call.rows, "serving.batch.requests": call.requests}
        failed = call.failed or not call.finished
        self._record(request, "infer", call.started, call.finished or ended, attributes, links, failed=failed)

    def _record(
        self,
        request: _Request,
        name: str,
        began: float,
        ended: float,
        attributes: Mapping[str, int] | None = None,
        links: Sequence[Link] = (),
        *,
        failed: bool = False,
    ) -> None:
        parent, start = set_span_in_context(request.span), request.to_epoch_ns(began)
        span = self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=start)
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(request.to_epoch_ns(max(began, ended)))


def _link(trace: TraceContext, span_id: str) -> Link:
    flags = TraceFlags(trace.flags)
    return Link(SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags))


def _name_and_attributes(context: RequestContext) -> tuple[str, dict[str, str | int]]:
    """Return the name of a request's span, and its first attributes, which samplers can use."""
    scope = context.scope
    client: dict[str, str | int] = {"client.address": context.client} if context.client else {}
    if not scope:
        service = "inference.GRPCInferenceService"
        rpc = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": context.path}
        return f"{service}/{context.path}", rpc | client | {"serving.request_id": context.request_id}
    route = _route(context.path)
    host, port = scope.get("server") or ("", 0)
    return f"{context.method} {route}", {
        "http.request.method": context.method,
        "http.route": route,
        "url.path": context.path,
        "url.scheme": scope["scheme"],
        "server.address": host,
        "server.port": port or 0,
        "network.protocol.version": scope["http_version"],
        "serving.request_id": context.request_id,
        **client,
    }


def _route(path: str) -> str:
    """Return the route of a path, with placeholders for the model and its version."""
    address, colon, verb = path.partition(":") if path.startswith("/v1/") else (path, "", "")
    parts = address.split("/")
    for segment, placeholder in (("models", "{name}"), ("versions", "{version}"), ("labels", "{label}")):
        if segment in parts[:-1]:
            parts[parts.index(segment) + 1] = placeholder
    return f"{'/'.join(parts)}{colon}{verb}"
