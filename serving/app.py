"""Create the application: wiring, start-up and shutdown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from serving import __version__, errors
from serving.auth.authenticator import Authenticator
from serving.auth.host_and_origin import HostNames
from serving.cluster import Cluster, majority_versions
from serving.dataplane import DataPlane
from serving.feature_interface import Core, load
from serving.http import problem_details
from serving.http.application import ServingApp, error_response
from serving.http.endpoints import (
    admin,
    api_docs,
    open_inference,
    platforms,
    status_page,
    tf_serving,
    webhooks,
)
from serving.http.forwarded_headers import ForwardedHeaders
from serving.http.http_context import context_of
from serving.http.readiness import StatusReporter
from serving.http.routing import Router
from serving.models.on_demand_slot import SlotOnDemand
from serving.models.selector import ModelSelector
from serving.models.slot import Slot
from serving.processes import gc_tuning
from serving.processes.launcher import Launcher
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.gate import Gate
from serving.registry.history import History
from serving.registry.on_demand import LoadedModelLimit, OnDemandModel
from serving.registry.registry_identity import registry_identity
from serving.registry.tag_writer import TagWriter
from serving.request_context import RequestContext
from serving.server.tls_certificate import Certificate
from serving.settings.settings import Settings
from serving.supervision import Supervisor
from serving.telemetry import event_loop_lag
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving")

FEATURES = (
    "approval",
    "observers",
    "rollout",
    "drift",
    "journal",
    "evaluation",
)
"""Folders of features, in the order in which their hooks run; see `serving.feature_interface`."""
_MIN_SHARED_FOLLOWERS = 4
"""From this number of references on, their followers poll the registry together."""
_MAX_SPREAD_SECONDS = 1.0
"""Each front delays its tags by a random part of this, so that several fronts rarely write the same tag."""
_MIN_CLOSE_SECONDS = 1.0
"""Features have this time to finish their work, even if draining took all of `SERVING_DRAIN_SECONDS`."""


def create_asgi_app(settings: Settings, fleet: Cluster | None = None) -> tuple[ASGIApp, ServingApp]:
    """Return the application with the layers that the settings require, and the application itself."""
    app = create_app(settings, fleet)
    outermost: ASGIApp = _with_cors(app, settings) if settings.cors_origins else app
    if settings.root_path or settings.forwarded_allow_ips:
        outermost = ForwardedHeaders(outermost, settings.root_path, settings.forwarded_allow_ips)
    return outermost, app


def _with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    model_headers = ("X-Model-Name", "X-Model-Version", "X-Request-ID", "X-Prediction-ID")
    expose_headers = (*model_headers, "Retry-After", "Server-Timing")
    request_headers = ("Authorization", "Content-Type", "X-API-Key", "X-Model", "X-Request-ID")
    allow_headers = (*request_headers, "Content-Encoding", "X-Request-Timeout", "traceparent", "tracestate")
    origins, methods = list(settings.cors_origins), ["GET", "POST"]
    return CORSMiddleware(app, origins, methods, allow_headers, expose_headers=expose_headers)


def create_app(settings: Settings, fleet: Cluster | None = None) -> ServingApp:
    """Return the application that serves the models in the settings, alone or as one front of a cluster.

    Raises:
        ApiKeyFileError: The file of API keys cannot be read.
        TracingConfigError: The environment turns on tracing that this service cannot do.
        ApproversFileError: The file of approvers cannot be used.
    """
    registry = RegistryClient(settings)
    supervisor = Supervisor()
    launcher = Launcher.from_settings(settings, settings, supervisor)
    store = ArtifactStore(settings.store_dir, registry_identity(settings))
    metrics = Metrics()
    guard = (
        Authenticator(settings.keys_file, stale_seconds=settings.keys_stale_seconds)
        if settings.keys_file
        else None
    )
    gate = Gate(settings, registry, store, launcher, metrics)
    tag_writer = TagWriter(registry, min(settings.poll_seconds, _MAX_SPREAD_SECONDS))
    slots = [
        Slot(reference, settings.replay_requests, required=_is_required(reference, settings.models))
        for reference in settings.models
    ]
    shadow_slots = [
        Slot(reference, settings.replay_requests, required=False) for reference in settings.shadow
    ]
    on_demand_slots = [
        SlotOnDemand(reference, settings.replay_requests, settings.max_queue_size)
        for reference in settings.on_demand
    ]

    def follow(slots: Sequence[Slot]) -> list[Follower]:
        return [
            Follower(
                slot,
                registry,
                store,
                gate,
                tag_writer,
                History(store.history(slot.reference.uri)),
                settings,
                shared=len(settings.models) >= _MIN_SHARED_FOLLOWERS,
            )
            for slot in slots
        ]

    main_followers, shadow_followers = follow(slots), follow(shadow_slots)
    on_demand_followers = follow(on_demand_slots)
    followers = [*main_followers, *shadow_followers, *on_demand_followers]
    limit = LoadedModelLimit(settings.max_loaded)
    on_demand_models = [
        OnDemandModel(follower, slot, limit, settings.idle_seconds, time.monotonic, supervisor)
        for follower, slot in zip(on_demand_followers, on_demand_slots, strict=True)
    ]
    models = ModelSelector([*slots, *shadow_slots, *on_demand_slots])
    core = Core(settings, metrics, registry, supervisor, models, followers, tag_writer, guard)
    features = load(FEATURES, core)
    for collector in (supervisor, *(collector for feature in features for collector in feature.collectors)):
        metrics.registry.register(collector)
    gate.checks = [check for feature in features for check in feature.checks]
    hooks = [hook for feature in features for hook in feature.hooks]
    finishers = [feature.on_finished for feature in features if feature.on_finished]

    def on_finished(context: RequestContext, status: int) -> None:
        for finisher in finishers:
            finisher(context, status)

    def check_webhooks() -> Awaitable[None]:
        return webhooks.warn_if_unsupported(registry.check_webhooks)

    dataplane = DataPlane(models, settings, metrics, hooks, on_finished, settings.sticky)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with suppress(errors.ProcessDied):  # the first model process tries again
            launcher.start()
        if fleet:
            await _adopt_cluster_versions(fleet, main_followers)
        running = [
            *(supervisor.start("follower", each.run) for each in (*main_followers, *shadow_followers)),
            *(supervisor.start("on-demand model", model.run) for model in on_demand_models),
            *(supervisor.start(task.name, task.run) for feature in features for task in feature.tasks),
            supervisor.start(
                "event loop monitor", lambda: event_loop_lag.measure_loop_lag(metrics.loop_lag.observe)
            ),
            *(
                [supervisor.start("webhook check", check_webhooks, finite=True)]
                if settings.webhook_secret
                else []
            ),
            supervisor.start("heap settlement", lambda: _freeze_heap_when_ready(slots), finite=True),
        ]
        try:
            async with _grpc_server(dataplane, settings, guard, app.certificate):
                yield
        finally:
            began = time.monotonic()
            for component in running:
                component.stop()
            await asyncio.gather(*(follower.unload("the service is stopping") for follower in followers))
            await launcher.aclose()
            left = max(_MIN_CLOSE_SECONDS, settings.drain_seconds - (time.monotonic() - began))
            await asyncio.gather(*(feature.aclose(left) for feature in features if feature.aclose))
            registry.close()

    app = ServingApp(
        title="Model serving",
        version=__version__,
        description="Typed predictions of the models in an MLflow registry.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    app.dataplane, app.predictions = dataplane, Router(dataplane, settings.predict_route)
    app.metrics, app.slots = metrics, models.slots
    app.guard = guard
    app.reloads = [feature.reload for feature in features if feature.reload]
    app.hosts = HostNames(settings.allowed_hosts) if settings.allowed_hosts else None
    app.origins, app.admin_port = settings.cors_origins, settings.admin_port
    reporter = StatusReporter(
        followers, registry, [feature.status for feature in features if feature.status], guard
    )
    routers = [
        admin.router(reporter, metrics, guard, fleet, supervisor),
        status_page.router(),
        open_inference.router(models),
        tf_serving.router(models),
        api_docs.router(app, models, has_keys=guard is not None),
        *(feature.routes(reporter) for feature in features if feature.routes),
    ]
    if settings.webhook_secret:
        secret = settings.webhook_secret.get_secret_value()
        routers.append(webhooks.router(secret, [follower.wake for follower in followers]))
    if settings.health_route:
        routers.append(platforms.health_router(models, settings.health_route))
    for router in routers:  # flat, so that `required` sees every route
        app.router.routes.extend(router.routes)
    for kind in (errors.ServingError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _respond_to_error)
    return app


def _respond_to_error(request: Request, error: Exception) -> Response:
    """Return the response for an error of one of FastAPI's routes, in the format of the route's protocol."""
    context = context_of(request.scope)
    return error_response(context, error, context.respond or problem_details.respond)


def _is_required(reference: Reference, models: Sequence[Reference]) -> bool:
    """Return whether readiness depends on a reference; of weighted ones, it depends on the first."""
    return reference.weight is None or reference is next(
        other for other in models if other.name == reference.name
    )


def _grpc_server(
    dataplane: DataPlane, settings: Settings, guard: Authenticator | None, certificate: Certificate | None
) -> AbstractAsyncContextManager[None]:
    if settings.grpc_port is None:
        return nullcontext()
    from serving.grpc import servicer  # its dependencies are an optional extra

    return servicer.run_grpc_server(dataplane, settings, guard, certificate)


async def _adopt_cluster_versions(fleet: Cluster, followers: Sequence[Follower]) -> None:
    """Load the versions that most other fronts of the cluster have live."""
    live = majority_versions(await fleet.view())
    await asyncio.gather(
        *(follower.adopt(live[uri]) for follower in followers if (uri := follower.slot.reference.uri) in live)
    )


async def _freeze_heap_when_ready(slots: Sequence[Slot]) -> None:
    """Exclude the objects on the heap from garbage collection once the first versions are live."""
    for slot in slots:
        await slot.ready.wait()
    gc_tuning.freeze()
