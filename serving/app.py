"""The FastAPI application: made of settings, with everything it needs handed down."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_swagger import patch_fastapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import __version__, errors
from serving.access import doors
from serving.access.guard import Guard
from serving.http import operations, problems, repository, webhooks
from serving.http.documentation import document
from serving.http.request_id import new_id, request_id
from serving.http.routes import Routes
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.gate import Gate
from serving.registry.herald import Herald
from serving.registry.history import History
from serving.registry.sleeper import Rota, Sleeper
from serving.registry.store import Store
from serving.runtime import heap
from serving.runtime.launcher import Launcher
from serving.runtime.models import Models
from serving.runtime.slot import Slot, SlotOnDemand
from serving.runtime.version import KEPT_BY_NOBODY
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving")

STATUSES: dict[type[errors.ServingError], int] = {
    errors.Malformed: 400,
    errors.Contradictory: 400,
    errors.BadHost: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.RateExceeded: 429,
    errors.UnknownModel: 404,
    errors.NotStreaming: 404,
    errors.TooSlow: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.Unprocessable: 422,
    errors.ModelFailed: 500,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
"""The one table of what an error is in HTTP; a subclass is what its nearest listed parent is."""

_CALLER_LEFT = 499
"""Nobody is answered so: it is for the metrics, as nginx counts those who left."""
_MANY = 4
"""So many models look at the registry together."""


class Front(FastAPI):
    """The application. Typed routes are answered here, around FastAPI's layers; all else by them.

    Every answer carries the request's id.
    """

    predictions: Routes
    metrics: Metrics
    guard: Guard | None = None
    hosts: tuple[str, ...] = ()
    admin_port: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["request_id"] = request_id(scope)
        predict = self.predictions.find(scope["path"])
        try:
            if self.guard or self.hosts or self.admin_port:
                self._let_in(scope)
            if predict is None:
                await super().__call__(scope, receive, _with_id(scope, send))
            else:
                await predict(scope, receive, send)
        except errors.CallerLeft:
            self._count(scope, _CALLER_LEFT)
        except Exception as error:
            if not isinstance(error, (errors.ServingError, HTTPException)):
                log.exception("request %s was not answered as it should be", scope["request_id"])
            respond = predict.respond if predict else problems.respond
            response = answer(scope, error, scope.get("respond", respond))
            self._count(scope, response.status_code)
            await response(scope, receive, _with_id(scope, send))

    def _count(self, scope: Scope, code: int) -> None:
        model, version = scope.get("leased", ("", ""))
        self.metrics.count(model, version, code)

    def _let_in(self, scope: Scope) -> None:
        path, headers = scope["path"], scope["headers"]
        if self.hosts and path not in doors.PROBES and not doors.is_called(self.hosts, headers):
            raise errors.BadHost("This service is not called so.")
        if self.admin_port and doors.is_admin(path) and scope["server"][1] != self.admin_port:
            raise HTTPException(404)
        if self.guard and (needed := doors.needed(path)):
            scope["key"] = self.guard.admit(headers, needed)


def application(settings: Settings) -> tuple[ASGIApp, Front]:
    """What a server is given, and the application in it; pages from elsewhere may ask, if they are to."""
    app = create_app(settings)
    if not settings.cors_origins:
        return app, app
    shared = ("X-Model-Name", "X-Model-Version", "X-Request-ID", "Retry-After", "Server-Timing")
    asked = ("Authorization", "Content-Type", "X-API-Key", "X-Model", "X-Request-ID", "X-Request-Timeout")
    origins, methods = list(settings.cors_origins), ["GET", "POST"]
    return CORSMiddleware(app, origins, methods, asked, expose_headers=shared), app


def create_app(settings: Settings) -> Front:
    """The application that serves the models which the settings name.

    Raises:
        BadKeys: the file of keys can't be read.
    """
    registry = RegistryClient(settings)
    launcher = Launcher(enforce=settings.enforce, strict=settings.strict)
    store = Store(settings.store_dir, registry.uri)
    metrics = Metrics()
    gate = Gate(settings, registry, store, launcher, metrics)
    herald = Herald(registry)
    slots = [Slot(reference, settings.replayed) for reference in settings.models]
    on_demand = [
        SlotOnDemand(reference, settings.replayed, settings.max_waiting) for reference in settings.on_demand
    ]
    followers = [
        Follower(
            slot,
            registry,
            store,
            gate,
            herald,
            History(store.history(slot.reference.uri)),
            settings,
            shared=len(slots) >= _MANY,
        )
        for slot in (*slots, *on_demand)
    ]
    rota = Rota(settings.most_loaded)
    sleepers = [
        Sleeper(follower, slot, rota, settings.idle_seconds, time.monotonic)
        for follower, slot in zip(followers[len(slots) :], on_demand, strict=True)
    ]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        launcher.start()
        running = [asyncio.create_task(each.run()) for each in followers[: len(slots)]]
        running += [asyncio.create_task(each.run()) for each in sleepers]
        settling = asyncio.create_task(_settle(slots))
        try:
            async with _answering_grpc(models, settings, metrics, guard):
                yield
        finally:
            for task in (*running, settling):
                task.cancel()
            await asyncio.gather(*(follower.empty("the service is stopping") for follower in followers))
            await launcher.aclose()
            registry.close()

    models = Models([*slots, *on_demand])
    app = Front(
        title="Model serving",
        version=__version__,
        description="Typed predictions of the models in an MLflow registry.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    # FastAPI's own page would fetch Swagger UI from elsewhere, which a closed network does not let through.
    patch_fastapi(app, redirect_from_root_to_docs=False, swagger_ui_parameters={"tryItOutEnabled": True})
    app.predictions, app.metrics = Routes(models, settings), metrics
    app.guard = guard = Guard(settings.keys_file) if settings.keys_file else None
    app.hosts, app.admin_port = settings.allowed_hosts, settings.admin_port
    app.include_router(operations.router(followers, registry, metrics))
    app.include_router(repository.router(models))
    if settings.webhook_secret:
        secret = settings.webhook_secret.get_secret_value()
        app.include_router(webhooks.router(secret, [follower.wake for follower in followers]))
    for kind in (errors.ServingError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, lambda request, error: answer(request.scope, error))
    # FastAPI's documented way to extend it: made of the contracts that are live when it is asked for.
    app.openapi = lambda: document(app, models, has_keys=guard is not None)  # type: ignore[method-assign]
    return app


def _answering_grpc(
    models: Models, settings: Settings, metrics: Metrics, guard: Guard | None
) -> AbstractAsyncContextManager[None]:
    if settings.grpc_port is None:
        return nullcontext()
    from serving.rpc import service  # what it needs is an extra

    return service.serving(models, settings, metrics, answer, new_id, guard)


async def _settle(slots: Sequence[Slot]) -> None:
    """Once the first versions are up, take what is on the heap out of garbage collection."""
    for slot in slots:
        await slot.filled.wait()
    heap.settle()


def answer(scope: Scope, error: Exception, respond: problems.Respond = problems.respond) -> Response:
    """The response that tells of an error, a problem unless the protocol has another form for it."""
    request_id = scope["request_id"]
    if isinstance(error, HTTPException):
        return respond(error.status_code, str(error.detail), request_id, headers=error.headers)
    if isinstance(error, RequestValidationError):
        misfits = [errors.Fault(tuple(each["loc"]), each["msg"]) for each in error.errors()[:20]]
        return respond(422, "The request does not fit.", request_id, faults=misfits)
    if not isinstance(error, errors.ServingError):
        return respond(500, "The server made a mistake; its log says which.", request_id)
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if isinstance(error, errors.ModelFailed):
        _log_failure(scope, error)
        return respond(status, "The model failed on this request.", request_id)
    if isinstance(error, errors.Unavailable):
        return respond(status, str(error), request_id, headers={"Retry-After": str(error.retry_after)})
    faults = error.faults if isinstance(error, errors.RequestError) else ()
    headers = {}
    if isinstance(error, errors.TooSlow):
        headers["Connection"] = "close"
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.RateExceeded):
        headers["Retry-After"] = str(error.retry_after)
    return respond(status, str(error), request_id, faults=faults, headers=headers)


def _log_failure(scope: Scope, error: errors.ModelFailed) -> None:
    """One line, whatever the model's exception contains."""
    facts = {
        "request_id": scope["request_id"],
        "path": scope["path"],
        "error": str(error),
        "cause": error.cause,
    }
    log.error("the model failed: %s", json.dumps(facts))


def _with_id(scope: Scope, send: Send) -> Send:
    header = (b"x-request-id", scope["request_id"].encode())

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), header, *KEPT_BY_NOBODY]
        await send(message)

    return send_with_id
