"""The application that answers: who is let in, which route predicts, and what an error is in HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving import errors
from serving.auth import host_and_origin
from serving.auth.access_rules import NO_ROUTE, Access, required
from serving.auth.authenticator import Authenticator
from serving.hooks import RequestHook
from serving.http import problem_details
from serving.http.model_visibility import sees_reasons
from serving.http.request_id import request_id
from serving.http.routing import Router
from serving.models.slot import Slot
from serving.server.tls_certificate import Certificate
from serving.telemetry.logging import request_context
from serving.telemetry.metrics import Metrics
from serving.version import NO_STORE_HEADERS

log = logging.getLogger("serving")

STATUSES: dict[type[errors.ServingError], int] = {
    errors.Malformed: 400,
    errors.ConflictingModel: 400,
    errors.BadHost: 400,
    errors.CrossSite: 403,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.RateExceeded: 429,
    errors.UnknownModel: 404,
    errors.UnknownPrediction: 404,
    errors.NotStreaming: 404,
    errors.RequestTimeout: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.Unprocessable: 422,
    errors.ModelFailed: 500,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
"""The one table of what an error is in HTTP; a subclass is what its nearest listed parent is."""


class ServingApp(FastAPI):
    """The application. Typed routes are answered here, around FastAPI's layers; all else by them.

    Every answer carries the request's id.
    """

    predictions: Router
    metrics: Metrics
    observers: Sequence[RequestHook] = ()
    on_end: Sequence[Callable[[Scope, int], None]] = ()
    """Run with each request that has ended and its status, except successful predictions."""
    slots: Sequence[Slot] = ()
    guard: Authenticator | None = None
    hosts: host_and_origin.HostNames | None = None
    probes_by_any_name = True
    """Accept any host name for probes."""
    origins: Collection[str] = ()
    """Origins of pages that may send requests."""
    admin_port: int | None = None
    certificate: Certificate | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["request_id"], scope["began"] = request_id(scope), time.perf_counter()
        predict = self.predictions.match(scope["path"])
        if predict:
            for observer in self.observers:
                observer.on_request(scope)
        try:
            self._authorize(scope, predict.access if predict else required(self.router.routes, scope))
            if predict is None:
                await super().__call__(scope, receive, add_request_id(scope, send))
                self._ended(scope, scope.get("status", problem_details.CLIENT_CLOSED_REQUEST))
            else:
                await predict(scope, receive, send)
        except errors.ClientDisconnected as error:
            self.record_failure(scope, problem_details.CLIENT_CLOSED_REQUEST, error)
        except Exception as error:
            if not isinstance(error, (errors.ServingError, HTTPException)):
                log.exception("a request was not answered as it should be", extra=request_context(scope))
            respond = predict.respond if predict else problem_details.respond
            response = error_response(scope, error, scope.get("respond", respond))
            self.record_failure(scope, response.status_code, error)
            if "status" not in scope:  # FastAPI's layers raise what they have answered with 500, too
                await response(scope, receive, add_request_id(scope, send))

    def record_failure(self, scope: Scope, status: int, error: Exception) -> None:
        """Count a request that was not answered as meant, and tell those who watch."""
        model, version = scope.get("leased", ("", ""))
        self.metrics.count(model, version, status)
        for observer in self.observers:
            observer.on_error(scope, status, error)
        self._ended(scope, status)

    def _ended(self, scope: Scope, status: int) -> None:
        for on_end in self.on_end:
            on_end(scope, status)

    def _authorize(self, scope: Scope, access: Access) -> None:
        """Check that the caller may use a route, before anything is leased or disclosed."""
        headers = dict(scope["headers"])
        is_foreign = self.hosts and not self.hosts.accepts(headers.get(b"host"))
        if is_foreign and not (access.is_probe and self.probes_by_any_name):
            raise errors.BadHost("This service does not have that host name.")
        if host_and_origin.is_cross_site(scope["method"], headers, self.origins):
            raise errors.CrossSite("Pages of other origins may not send this request.")
        if access is not NO_ROUTE and host_and_origin.lacks_media_type(scope["method"], headers):
            raise errors.UnsupportedMedia("Send the header Content-Type with a body.")
        if self.admin_port and access.for_operators and scope["server"][1] != self.admin_port:
            raise HTTPException(404)
        if self.guard:
            scope["key"] = None
            if access.scope:
                scope["key"] = self.guard.authenticate(scope["headers"], access)


def error_response(
    scope: Scope, error: Exception, respond: problem_details.Respond = problem_details.respond
) -> Response:
    """The response that tells of an error, a problem unless the protocol has another form for it."""
    request_id = scope["request_id"]
    if isinstance(error, HTTPException):
        return respond(error.status_code, str(error.detail), request_id, headers=error.headers)
    if isinstance(error, RequestValidationError):
        misfits = [errors.FieldError(tuple(each["loc"]), each["msg"]) for each in error.errors()[:20]]
        return respond(422, "The request does not fit.", request_id, faults=misfits)
    if not isinstance(error, errors.ServingError):
        return respond(500, "The server made a mistake; its log says which.", request_id)
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if isinstance(error, errors.ModelFailed):
        _log_failure(scope, error)
        return respond(status, "The model failed on this request.", request_id)
    if isinstance(error, errors.Unavailable):
        detail = str(error)
        if isinstance(error, errors.NotLive) and not sees_reasons(scope):
            detail = error.public
        return respond(status, detail, request_id, headers={"Retry-After": str(error.retry_after)})
    faults = error.faults if isinstance(error, errors.RequestError) else ()
    headers = {}
    if isinstance(error, errors.RequestTimeout):
        headers["Connection"] = "close"
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.RateExceeded):
        headers["Retry-After"] = str(error.retry_after)
    return respond(status, str(error), request_id, faults=faults, headers=headers)


def _log_failure(scope: Scope, error: errors.ModelFailed) -> None:
    more = {"path": scope["path"], "cause": error.cause}
    log.error("the model failed: %s", error, extra=request_context(scope) | more)


def add_request_id(scope: Scope, send: Send) -> Send:
    header = (b"x-request-id", scope["request_id"].encode())

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            scope["status"] = message["status"]
            headers = [*message.get("headers", ())]
            said = {name for name, _ in headers}
            message["headers"] = [
                *headers,
                header,
                *(each for each in NO_STORE_HEADERS if each[0] not in said),
            ]
        await send(message)

    return send_with_id
