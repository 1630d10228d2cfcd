"""The ASGI application: authorizes requests, routes them, and maps errors to responses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving import errors
from serving.auth import host_and_origin
from serving.auth.access_rules import Access, allowed_methods, required
from serving.auth.authenticator import Authenticator
from serving.dataplane import DataPlane
from serving.error_statuses import Status, failure_of
from serving.http import problem_details
from serving.http.http_context import HttpContext
from serving.http.request_decompression import CODINGS
from serving.http.response_compression import compressing
from serving.http.routing import Router
from serving.models.slot import Slot
from serving.server.tls_certificate import Certificate
from serving.telemetry.metrics import Metrics
from serving.version import NO_STORE_HEADERS

log = logging.getLogger("serving")


class ServingApp(FastAPI):
    """The application: inference requests bypass FastAPI's layers, which handle all other requests.

    Every response carries the id of its request.
    """

    dataplane: DataPlane
    predictions: Router
    metrics: Metrics
    slots: Sequence[Slot] = ()
    guard: Authenticator | None = None
    reloads: Sequence[Callable[[], None]] = ()
    """Let features read their files again."""
    hosts: host_and_origin.HostNames | None = None
    probes_by_any_name = True
    """Accept any host name for probes."""
    origins: Collection[str] = ()
    """Origins of pages that may send requests."""
    admin_port: int | None = None
    certificate: Certificate | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request, or run the lifespan."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        context = HttpContext(scope, receive, send)
        endpoint = self.predictions.match(context.path)
        if endpoint and context.method != "OPTIONS":
            self.dataplane.receive(context)
        else:
            scope["context"] = context
            scope = _as_get(scope)
        try:
            self._authorize(context, endpoint.access if endpoint else required(self.router.routes, scope))
            if endpoint is None or context.method == "OPTIONS":
                respond_to = _sender(context, send)
                if context.method == "OPTIONS" and (methods := self._methods(endpoint, scope)):
                    await _allow(methods)(scope, receive, respond_to)
                else:
                    await super().__call__(scope, receive, respond_to)
                self.dataplane.on_finished(context, context.status or Status.CLIENT_CLOSED_REQUEST.value)
            else:
                await endpoint(context)
        except errors.ClientDisconnected as error:
            self.dataplane.record_failure(context, Status.CLIENT_CLOSED_REQUEST, error)
        except Exception as error:
            if not isinstance(error, (errors.ServingError, HTTPException)):
                log.exception("unhandled error while processing a request", extra=context.log_fields)
            respond = endpoint.respond if endpoint else problem_details.respond
            response = error_response(context, error, context.respond or respond)
            self.dataplane.record_failure(context, response.status_code, error)
            if context.status is None:  # FastAPI raises an error again after it has sent the response
                await response(scope, receive, _sender(context, send))

    def _methods(self, endpoint: object, scope: Scope) -> Collection[str]:
        """Return the methods of a path, which may have an endpoint for predictions; none without a route."""
        return ("POST",) if endpoint else allowed_methods(self.router.routes, scope)

    def _authorize(self, context: HttpContext, access: Access) -> None:
        """Check that the client may use a route, before a model is leased or anything is disclosed."""
        headers = dict(context.headers)
        is_foreign = self.hosts and not self.hosts.accepts(headers.get(b"host"))
        if is_foreign and not (access.is_probe and self.probes_by_any_name):
            raise errors.BadHost("This service does not have that host name.")
        if host_and_origin.is_cross_site(context.method, headers, self.origins):
            raise errors.CrossSite("Pages of other origins may not send this request.")
        if access.needs_media_type and host_and_origin.lacks_media_type(context.method, headers):
            raise errors.UnsupportedMedia("Send the header Content-Type with a body.")
        if self.admin_port:
            context.is_admin_port = self.admin_port == _port(context.scope)
        if access.for_operators and context.is_admin_port is False:
            raise HTTPException(404)
        if self.guard:
            context.has_keys = True
            if access.scope:
                context.key = self.guard.authenticate(context.headers, access)


def _as_get(scope: Scope) -> Scope:
    """Return the scope with GET for HEAD: FastAPI's routes lack HEAD, and the server sends no body for it."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def _allow(methods: Collection[str]) -> Response:
    """Return the response to OPTIONS for a path with these methods."""
    return Response(status_code=204, headers={"Allow": ", ".join(sorted({*methods, "OPTIONS"}))})


def _port(scope: Mapping[str, Any]) -> int | None:
    """Return the port that received a request; None for a Unix socket."""
    server = scope.get("server")
    return server[1] if server else None


def error_response(
    context: HttpContext, error: Exception, respond: problem_details.Respond = problem_details.respond
) -> Response:
    """Return the response for an error, in the format of a protocol."""
    request_id = context.request_id
    if isinstance(error, HTTPException):
        return respond(error.status_code, str(error.detail), request_id, headers=error.headers)
    if isinstance(error, RequestValidationError):
        faults = [errors.FieldError(tuple(field["loc"]), field["msg"]) for field in error.errors()[:20]]
        return respond(422, "The request does not match the route.", request_id, faults=faults)
    failure = failure_of(context, error)
    headers = {}
    if failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    if failure.status == Status.RECEIVE_TIMEOUT:
        headers["Connection"] = "close"
    if isinstance(error, errors.UnsupportedEncoding):
        headers["Accept-Encoding"] = ", ".join(CODINGS)
    if failure.status == Status.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return respond(failure.status, failure.detail, request_id, faults=failure.faults, headers=headers)


def _sender(context: HttpContext, send: Send) -> Send:
    """Return a `send` that completes the headers of a response, and compresses it where possible."""
    return add_request_id(context, compressing(context.headers, send))


def add_request_id(context: HttpContext, send: Send) -> Send:
    """Return a `send` that adds the id of the request, and forbids to store the response, by default."""
    header = (b"x-request-id", context.request_id.encode())

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            context.status = message["status"]
            headers = [*message.get("headers", ())]
            present = {name for name, _ in headers}
            message["headers"] = [
                *headers,
                header,
                *(default for default in NO_STORE_HEADERS if default[0] not in present),
            ]
        await send(message)

    return send_with_id
