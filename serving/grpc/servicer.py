"""The Open Inference Protocol, version 2, over gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs
from starlette.responses import Response
from starlette.types import Scope

from serving.auth.access_rules import GENERAL, PREDICT, PROBE, declared, requires
from serving.auth.authenticator import Authenticator
from serving.errors import ClientDisconnected, Malformed, NotLive
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.grpc.messages import from_request, to_response
from serving.hooks import Refused, RequestHook
from serving.http.endpoints import model_repository, open_inference
from serving.http.endpoints.predict import track_outcome
from serving.http.model_visibility import visible_models
from serving.http.problem_details import CLIENT_CLOSED_REQUEST
from serving.http.routing import routing_key
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.models.selector import ModelSelector
from serving.models.traffic_split import primary
from serving.server.connection_limits import grpc_connections
from serving.server.tls_certificate import Certificate
from serving.settings.settings import Settings

log = logging.getLogger("serving.grpc")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MAX_IDLE_MS = 300_000
_MAX_AGE_MS = 3_600_000
"""The time after which a client has to connect again, which bounds what unread responses hold."""
Answer = Callable[[Scope, Exception, Any], Response]
"""The response that tells of an error over HTTP, after which it is told here."""


@asynccontextmanager
async def run_grpc_server(
    models: ModelSelector,
    settings: Settings,
    refused: Refused,
    answer: Answer,
    new_id: Callable[[], str],
    guard: Authenticator | None,
    observers: Sequence[RequestHook] = (),
    certificate: Certificate | None = None,
) -> AsyncIterator[None]:
    """Answer gRPC on its port for as long as the block runs, and then those who are waiting."""
    server = grpc.aio.server(options=_options(settings))
    service = _Service(models, settings, refused, answer, new_id, guard, observers)
    server.add_generic_rpc_handlers((_handler(service),))
    address = f"{settings.host}:{settings.grpc_port}"
    if certificate:
        port = server.add_secure_port(address, _credentials(certificate))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    log.info("serving gRPC at %s:%d", settings.host, port)
    try:
        yield
    finally:
        await server.stop(settings.drain_seconds)


def _handler(service: _Service) -> grpc.GenericRpcHandler:
    """Return the handler of all methods, which see a message that can't be parsed as an error."""
    described = protos.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(service, method.name),
            partial(_parsed, getattr(protos, method.input_type.name)),
            getattr(protos, method.output_type.name).SerializeToString,
        )
        for method in described.methods
    }
    return grpc.method_handlers_generic_handler(described.full_name, methods)


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        return Malformed(f"The message is no {kind.DESCRIPTOR.name}.")


def _options(settings: Settings) -> list[tuple[str, int]]:
    """Return the limits of connections, which gRPC itself enforces."""
    receive_ms = round(settings.receive_seconds * 1000)
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_allowed_incoming_connections", grpc_connections(settings)),
        ("grpc.max_concurrent_streams", settings.max_waiting),
        ("grpc.server_handshake_timeout_ms", receive_ms),  # of TLS, and until the settings of HTTP/2 arrive
        ("grpc.max_connection_idle_ms", _MAX_IDLE_MS),
        ("grpc.max_connection_age_ms", _MAX_AGE_MS),
        ("grpc.max_connection_age_grace_ms", round(settings.deadline_seconds * 1000) + receive_ms),
        ("grpc.keepalive_time_ms", receive_ms),  # ends connections whose clients read nothing at all
        ("grpc.keepalive_timeout_ms", receive_ms),
    ]


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return credentials that fetch the certificate for each handshake."""
    used = certificate.pair()

    def fetch() -> Any:
        nonlocal used
        if (pair := certificate.pair()) == used:
            return None
        used = pair
        return grpc.ssl_server_certificate_configuration([pair])

    return grpc.dynamic_ssl_server_credentials(grpc.ssl_server_certificate_configuration([used]), fetch)


class _Service(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(
        self,
        models: ModelSelector,
        settings: Settings,
        refused: Refused,
        answer: Answer,
        new_id: Callable[[], str],
        guard: Authenticator | None,
        observers: Sequence[RequestHook],
    ) -> None:
        self._guard, self._observers = guard, observers
        self._models, self._refused, self._answer, self._new_id = models, refused, answer, new_id
        self._infer = open_inference.InferEndpoint(self._lease_by_chance, settings, observers)
        self._sticky = settings.sticky

    def _lease_by_chance(self, scope: Scope) -> LoadedModel:
        name, version = scope["asked"]
        return self._lease(scope, name, version, partial(routing_key, name, scope, self._sticky))

    def _lease(
        self, scope: Scope, name: str, version: str, point: Callable[[], float] = primary
    ) -> LoadedModel:
        models = visible_models(self._models, scope)
        return models.version(name, version) if version else models.lease(name, point)

    @requires(PROBE)
    async def ServerLive(self, request: Any, context: Any) -> Any:
        return protos.ServerLiveResponse(live=True)

    @requires(PROBE)
    async def ServerReady(self, request: Any, context: Any) -> Any:
        ready = all(slot.is_serving for slot in self._models.slots if slot.required)
        return protos.ServerReadyResponse(ready=ready)

    @requires(GENERAL)
    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        async def metadata(scope: Scope) -> Any:
            return protos.ServerMetadataResponse(
                **model_repository.ServerMetadata(extensions=[]).model_dump()
            )

        return await self._answered(context, request, "ServerMetadata", metadata)

    @requires(PREDICT)
    async def ModelReady(self, request: Any, context: Any) -> Any:
        async def ready(scope: Scope) -> Any:
            try:
                self._lease(scope, request.name, request.version)
            except NotLive:
                return protos.ModelReadyResponse(ready=False)
            return protos.ModelReadyResponse(ready=True)

        return await self._answered(context, request, "ModelReady", ready)

    @requires(PREDICT)
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        async def metadata(scope: Scope) -> Any:
            leased = self._lease(scope, request.name, request.version)
            found = model_repository.metadata(visible_models(self._models, scope), leased)
            return protos.ModelMetadataResponse(**found.model_dump())

        return await self._answered(context, request, "ModelMetadata", metadata)

    @requires(PREDICT)
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        async def infer(scope: Scope) -> Any:
            scope["asked"] = (request.model_name, request.model_version)
            leased = await self._infer.leased(scope)
            parts: list[Part] = []
            with leased as live, track_outcome(live, parts, partial(self._infer.is_hurried, scope)):
                asked, inputs = from_request(request)
                ends = time.perf_counter() + self._infer.seconds(scope)
                try:
                    outputs, _ = await open_inference.run_inference(live, parts, asked, inputs, ends)
                finally:
                    live.calls.withdraw(
                        parts
                    )  # gRPC cancels this where the caller leaves, or sets a deadline
                head = {"model_name": live.version.name, "model_version": live.version.version or ""}
                answered = to_response(head | {"id": asked.id or scope["request_id"]}, outputs)
            live.metrics.rows.inc(sum(len(indices) for indices, _ in parts))
            if headers := [
                header for observer in self._observers for header in observer.response_headers(scope)
            ]:
                await context.send_initial_metadata(
                    [(name.decode(), value.decode()) for name, value in headers]
                )
            self._infer.record(live, scope, b"", (), parts)
            return answered

        return await self._answered(context, request, "ModelInfer", infer)

    async def _answered(
        self, context: Any, request: Any, name: str, make: Callable[[Scope], Awaitable[Any]]
    ) -> Any:
        """What is made, or the status that tells why it could not be."""
        sent = [(key.encode(), _bytes(value)) for key, value in context.invocation_metadata()]
        scope: dict[str, Any] = {"request_id": self._new_id(), "path": name, "headers": sent}
        scope |= {"began": time.perf_counter(), "client": (_host(context.peer()), None)}
        if name == "ModelInfer":
            for observer in self._observers:
                observer.on_request(scope)
        try:
            if self._guard:
                scope["key"] = None
                scope["key"] = self._guard.authenticate(sent, declared(getattr(self, name)))
            if isinstance(request, Malformed):
                raise request
            return await make(scope)
        except asyncio.CancelledError:  # by the caller, or because the caller's deadline has passed
            self._refused(scope, CLIENT_CLOSED_REQUEST, ClientDisconnected("The caller has gone."))
            raise
        except Exception as error:
            response = self._answer(scope, error, open_inference.respond)
            self._refused(scope, response.status_code, error)
            detail = orjson.loads(response.body)["error"]
            await context.abort(_CODES.get(response.status_code, grpc.StatusCode.UNKNOWN), detail)


def _host(peer: str) -> str:
    """The address in what gRPC calls a peer: `ipv4:10.0.0.1:4711`, `ipv6:%5B::1%5D:4711`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
