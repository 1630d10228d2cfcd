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
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving import __version__
from serving.hooks import InferenceEvent, RequestHook
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

    def on_request(self, scope: MutableMapping[str, Any]) -> None:
        """A request has come: begin its span, in the trace of its caller if it tells of one."""
        told: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if name in _CARRIED:
                told.setdefault(_CARRIED[name], []).append(value.decode("latin-1"))
        name, attributes = _described(scope)
        epoch = time.time_ns() - time.perf_counter_ns()
        began, kind = epoch + int(scope["began"] * 1e9), SpanKind.SERVER
        span = self._tracer.start_span(name, _W3C.extract(told), kind, attributes, start_time=began)
        context = span.get_span_context()
        ids, state = (f"{context.trace_id:032x}", f"{context.span_id:016x}"), context.trace_state.to_header()
        scope["trace"] = trace = TraceContext(*ids, context.trace_flags, state)
        scope["traced"] = _Request(span, trace, epoch)
        current.set(trace)

    def on_response(self, exchange: InferenceEvent) -> None:
        """A request was answered: make the spans of its parts, and end its own."""
        request: _Request = exchange.scope["traced"]
        if request.span.is_recording():
            rows = sum(len(indices) for indices, _ in exchange.parts)
            request.span.set_attributes({"serving.rows": rows, "serving.cached": not exchange.parts})
            self._end(request, exchange.scope, 200, exchange.ended)

    def on_error(self, scope: MutableMapping[str, Any], status: int, error: Exception) -> None:
        """A request was not answered as meant; its span has failed unless that is the caller's mistake."""
        request: _Request | None = scope.get("traced")
        if request and request.span.is_recording():
            request.span.set_attribute("error.type", type(error).__name__)
            if status >= 500:
                request.span.set_status(StatusCode.ERROR)
            self._end(request, scope, status, time.perf_counter())

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

    def _end(self, request: _Request, scope: Mapping[str, Any], status: int, ended: float) -> None:
        model, version = scope.get("leased", ("", ""))
        if model:
            told = {"serving.model.name": model, "serving.model.version": version or ""}
            request.span.set_attributes(told)
        if "method" in scope:
            request.span.set_attribute("http.response.status_code", status)
        if taken := scope.get("taken"):
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


def _described(scope: Mapping[str, Any]) -> tuple[str, dict[str, str | int]]:
    """The name of a request's span, and what is known of it as it begins, by which it may be sampled."""
    client = {"client.address": scope["client"][0]} if scope.get("client") else {}
    if "method" not in scope:
        service = "inference.GRPCInferenceService"
        rpc = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": scope["path"]}
        return f"{service}/{scope['path']}", rpc | client | {"serving.request_id": scope["request_id"]}
    route = _route(scope["path"])
    host, port = scope.get("server") or ("", 0)
    return f"{scope['method']} {route}", {
        "http.request.method": scope["method"],
        "http.route": route,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "server.address": host,
        "server.port": port or 0,
        "network.protocol.version": scope["http_version"],
        "serving.request_id": scope["request_id"],
        **client,
    }


def _route(path: str) -> str:
    """The route of a prediction's path, which is one for all models."""
    parts = path.split("/")
    for before, name in (("models", "{name}"), ("versions", "{version}")):
        if before in parts[:-1]:
            parts[parts.index(before) + 1] = name
    return "/".join(parts)
