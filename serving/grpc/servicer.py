"""The Open Inference Protocol, version 2, over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from serving.auth.access_rules import GENERAL, PREDICT, PROBE, declared, requires
from serving.auth.authenticator import Authenticator
from serving.auth.trusted_proxies import TrustedProxies
from serving.dataplane import DataPlane, Endpoint
from serving.error_statuses import Status, failure_of, one_line
from serving.errors import ClientDisconnected, Malformed, NotLive, ServingError
from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.grpc.messages import from_request, to_response
from serving.models.loaded_model import LoadedModel
from serving.models.traffic_split import primary
from serving.protocols import open_inference
from serving.request_context import GRPC, RequestContext, new_id
from serving.server.connection_limits import grpc_connections
from serving.server.tls_certificate import Certificate
from serving.settings.parsing import with_brackets
from serving.settings.settings import Settings

log = logging.getLogger("serving.grpc")

_CODES = {
    Status.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Status.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Status.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Status.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Status.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.RATE_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.INTERNAL: grpc.StatusCode.INTERNAL,
    Status.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Status.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MAX_IDLE_MS = 300_000
_MAX_AGE_MS = 3_600_000
"""The time after which a client has to connect again, which bounds what unread responses hold."""


@asynccontextmanager
async def run_grpc_server(
    dataplane: DataPlane,
    settings: Settings,
    guard: Authenticator | None,
    certificate: Certificate | None = None,
) -> AsyncIterator[None]:
    """Serve gRPC on its port while the block runs, then finish the requests in progress."""
    server = grpc.aio.server(options=_options(settings))
    server.add_generic_rpc_handlers((_handler(_Service(dataplane, guard, settings.forwarded_allow_ips)),))
    host = with_brackets(settings.host)
    address = f"{host}:{settings.grpc_port}"
    if certificate:
        port = server.add_secure_port(address, _credentials(certificate))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    log.info("serving gRPC at %s:%d", host, port)
    try:
        yield
    finally:
        await server.stop(settings.drain_seconds)


def _handler(service: _Service) -> grpc.GenericRpcHandler:
    """Return the handler of all methods; a method receives an error in place of an invalid message."""
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
    receive_ms = round(settings.read_timeout_seconds * 1000)
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_allowed_incoming_connections", grpc_connections(settings)),
        ("grpc.max_concurrent_streams", settings.max_queue_size),
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


class _Endpoint(Endpoint[RequestContext, protos.ModelInferResponse]):
    """Parses and renders `ModelInfer`, for one request."""

    protocol = "grpc"

    def __init__(self, dataplane: DataPlane, request: protos.ModelInferRequest) -> None:
        self._dataplane, self._request = dataplane, request

    def select(self, context: RequestContext) -> LoadedModel:
        """Return the version that the request names, or the live version of its model."""
        name, version = self._request.model_name, self._request.model_version
        if version:
            return self._dataplane.select_version(context, name, version)
        return self._dataplane.select(context, name)

    async def run(self, context: RequestContext, model: LoadedModel) -> protos.ModelInferResponse:
        """Return the response."""
        request, inputs = from_request(self._request)
        rows, params = open_inference.parse_rows(model.contract, model.column_validator, request, inputs)
        output = await self._dataplane.predict_table(context, model, rows, params)
        outputs, _ = open_inference.render(model.contract, request, output)
        version = model.version
        return to_response(version.name, version.version or "", request.id or context.request_id, outputs)


class _Service(services.GRPCInferenceServiceServicer):
    def __init__(
        self, dataplane: DataPlane, guard: Authenticator | None, proxies: Collection[str] = ()
    ) -> None:
        self._dataplane, self._guard = dataplane, guard
        self._proxies = TrustedProxies(proxies) if proxies else None

    def _lease(self, context: RequestContext, name: str, version: str) -> LoadedModel:
        """Return a loaded version without loading a model, as requests for metadata need it."""
        models = self._dataplane.visible_models(context)
        return models.version(name, version) if version else models.lease(name, primary)

    @requires(PROBE)
    async def ServerLive(self, request: Any, call: Any) -> protos.ServerLiveResponse:
        return protos.ServerLiveResponse(live=True)

    @requires(PROBE)
    async def ServerReady(self, request: Any, call: Any) -> protos.ServerReadyResponse:
        ready = all(slot.is_serving for slot in self._dataplane.models.slots if slot.required)
        return protos.ServerReadyResponse(ready=ready)

    @requires(GENERAL)
    async def ServerMetadata(self, request: Any, call: Any) -> Any:
        async def metadata(context: RequestContext) -> protos.ServerMetadataResponse:
            described = open_inference.ServerMetadata(extensions=[])
            return protos.ServerMetadataResponse(**described.model_dump())

        return await self._respond(call, request, "ServerMetadata", metadata)

    @requires(PREDICT)
    async def ModelReady(self, request: Any, call: Any) -> Any:
        async def ready(context: RequestContext) -> protos.ModelReadyResponse:
            try:
                self._lease(context, request.name, request.version)
            except NotLive:
                return protos.ModelReadyResponse(ready=False)
            return protos.ModelReadyResponse(ready=True)

        return await self._respond(call, request, "ModelReady", ready)

    @requires(PREDICT)
    async def ModelMetadata(self, request: Any, call: Any) -> Any:
        async def metadata(context: RequestContext) -> protos.ModelMetadataResponse:
            model = self._lease(context, request.name, request.version)
            name = model.version.name
            loaded = self._dataplane.visible_models(context).loaded(name)
            versions = [version.version.version for version in loaded]
            described = open_inference.model_metadata(name, model.contract, versions)
            return protos.ModelMetadataResponse(**described.model_dump())

        return await self._respond(call, request, "ModelMetadata", metadata)

    @requires(PREDICT)
    async def ModelInfer(self, request: Any, call: Any) -> Any:
        async def infer(context: RequestContext) -> protos.ModelInferResponse:
            endpoint = _Endpoint(self._dataplane, request)
            response = await self._dataplane.infer(context, endpoint.select, endpoint)
            if headers := self._dataplane.response_headers(context):
                await call.send_initial_metadata([(name.decode(), value.decode()) for name, value in headers])
            self._dataplane.record_response(context)
            return response

        return await self._respond(call, request, "ModelInfer", infer)

    async def _respond(
        self, call: Any, request: Any, method: str, handle: Callable[[RequestContext], Awaitable[Any]]
    ) -> Any:
        """Return the response of a handler, or abort the call with the status of its error."""
        metadata = [(name.encode(), _bytes(value)) for name, value in call.invocation_metadata()]
        context = RequestContext(new_id(), GRPC, method, metadata, self._client(call, metadata), {})
        if method == "ModelInfer":
            self._dataplane.receive(context)
        try:
            if self._guard:
                context.has_keys = True
                context.key = self._guard.authenticate(metadata, declared(getattr(self, method)))
            if isinstance(request, Malformed):
                raise request
            return await handle(context)
        except asyncio.CancelledError:  # the client cancelled, or its deadline has passed
            error = ClientDisconnected("The client cancelled the call.")
            self._dataplane.record_failure(context, Status.CLIENT_CLOSED_REQUEST, error)
            raise
        except Exception as error:
            if not isinstance(error, ServingError):
                log.exception("unhandled error while processing a request", extra=context.log_fields)
            failure = failure_of(context, error)
            # The protocol has one status for all invalid requests.
            status = Status.INVALID if failure.status == Status.UNPROCESSABLE else failure.status
            self._dataplane.record_failure(context, status, error)
            code = _CODES.get(Status(status), grpc.StatusCode.UNKNOWN)
            await call.abort(code, one_line(failure.detail, failure.faults))

    def _client(self, call: Any, metadata: Sequence[tuple[bytes, bytes]]) -> str:
        """Return the address of the client, which trusted proxies forward."""
        host = _host(call.peer())
        if self._proxies and self._proxies.trusts(host):
            values = [value.decode("latin-1") for name, value in metadata if name == b"x-forwarded-for"]
            if address := self._proxies.client(",".join(values)):
                return address[0]
        return host


def _host(peer: str) -> str:
    """Return the address of a gRPC peer such as `ipv4:10.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
