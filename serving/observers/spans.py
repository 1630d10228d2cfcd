"""Traces of requests for predictions, by OpenTelemetry, which is an extra.

A request's span begins with it. The spans of its parts are made once it is answered, of times that were
noted on the way: `validate`, `queue`, and `infer` for each call of the model. Attributes are named by
https://opentelemetry.io/docs/specs/semconv/http/http-spans/, and `serving.…` what that does not know.
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
_CARRIED = {b"traceparent": "traceparent", b"tracestate": "tracestate"}
_OURS = {"service.name": "serving", "service.version": __version__}


class Ids(RandomIdGenerator):
    """Ids of spans; a span that was told of before it is made gets the `given` one."""

    given: int | None = None

    def generate_span_id(self) -> int:
        """The id of the next span."""
        given, self.given = self.given, None
        return given or super().generate_span_id()


class _Request(NamedTuple):
    """A request that is traced; `epoch` is when the performance counter was 0, in nanoseconds since 1970."""

    span: Span
    trace: TraceContext
    epoch: int

    def wall(self, moment: float) -> int:
        """A moment of the performance counter by the clock on the wall."""
        return self.epoch + int(moment * 1e9)


class TraceRecorder(RequestHook):
    """Makes the spans of requests, and sends them as the standard variables say.

    It has a provider of its own: the global one is MLflow's, or a library's.
    """

    def __init__(self) -> None:
        self._ids = Ids()
        self._provider = TracerProvider(
            resource=Resource.create({}).merge(Resource(_OURS)).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("serving", __version__)

    # -- watching

    def on_request(self, context: RequestContext) -> None:
        """A request has come: begin its span, in the trace of its caller if it tells of one."""
        told: dict[str, list[str]] = {}
        for header, value in context.headers:
            if header in _CARRIED:
                told.setdefault(_CARRIED[header], []).append(value.decode("latin-1"))
        name, attributes = _described(context)
        epoch = time.time_ns() - time.perf_counter_ns()
        began, kind = epoch + int(context.started * 1e9), SpanKind.SERVER
        span = self._tracer.start_span(name, _W3C.extract(told), kind, attributes, start_time=began)
        own = span.get_span_context()
        ids, state = (f"{own.trace_id:032x}", f"{own.span_id:016x}"), own.trace_state.to_header()
        trace = TraceContext(*ids, own.trace_flags, state)
        context.trace_id, context.state["span"] = trace.trace_id, _Request(span, trace, epoch)
        current.set(trace)

    def on_response(self, exchange: InferenceEvent) -> None:
        """A request was answered: make the spans of its parts, and end its own."""
        request: _Request = exchange.context.state["span"]
        if request.span.is_recording():
            rows = sum(len(indices) for indices, _ in exchange.parts)
            request.span.set_attributes({"serving.rows": rows, "serving.cached": not exchange.parts})
            self._end(request, exchange.context, 200, exchange.ended)

    def on_error(self, context: RequestContext, status: int, error: Exception) -> None:
        """A request was not answered as meant; its span has failed unless that is the caller's mistake."""
        request: _Request | None = context.state.get("span")
        if request and request.span.is_recording():
            request.span.set_attribute("error.type", type(error).__name__)
            if status >= 500:
                request.span.set_status(StatusCode.ERROR)
            self._end(request, context, status, time.perf_counter())

    async def aclose(self, seconds: float) -> None:
        """Send what was not sent yet, for so long at most."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await sent.wait()
        except TimeoutError:
            log.warning("traces could not be sent within %g s", seconds)

    # -- spans

    def _end(self, request: _Request, context: RequestContext, status: int, ended: float) -> None:
        model, version = context.model_labels
        if model:
            told = {"serving.model.name": model, "serving.model.version": version or ""}
            request.span.set_attributes(told)
        if context.scope:
            request.span.set_attribute("http.response.status_code", status)
        if taken := context.leased_at:
            self._make_parts(request, taken, ended)
        request.span.end(request.wall(ended))

    def _make_parts(self, request: _Request, taken: float, ended: float) -> None:
        trace = request.trace
        self._make(request, "validate", taken, trace.queued or ended)
        if trace.queued:
            self._make(request, "queue", trace.queued, trace.calls[0].started if trace.calls else ended)
        for call in trace.calls:
            self._make_call(request, call, ended)

    def _make_call(self, request: _Request, call: ModelCall, ended: float) -> None:
        """The span that model code continues, of the request whose trace that is; others refer to it."""
        home, links = call.home, [_link(call.home, call.span_id)]
        if request.trace is home:
            self._ids.given = int(call.span_id, 16)
            links = [_link(each, each.span_id) for each in call.traces if each is not home]
        told = {"serving.batch.rows": call.rows, "serving.batch.requests": call.requests}
        failed = call.failed or not call.finished
        self._make(request, "infer", call.started, call.finished or ended, told, links, failed=failed)

    def _make(
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
        parent, start = set_span_in_context(request.span), request.wall(began)
        span = self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=start)
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(request.wall(max(began, ended)))


def _link(trace: TraceContext, span_id: str) -> Link:
    flags = TraceFlags(trace.flags)
    return Link(SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags))


def _described(context: RequestContext) -> tuple[str, dict[str, str | int]]:
    """The name of a request's span, and what is known of it as it begins, by which it may be sampled."""
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
    """The route of a prediction's path, which is one for all models."""
    parts = path.split("/")
    for before, name in (("models", "{name}"), ("versions", "{version}")):
        if before in parts[:-1]:
            parts[parts.index(before) + 1] = name
    return "/".join(parts)
