"""The FastAPI application: made of settings, with everything it needs handed down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving import __version__, errors
from serving.auth.authenticator import Authenticator
from serving.auth.host_and_origin import HostNames
from serving.cluster import Cluster, majority_versions
from serving.dataplane import DataPlane
from serving.drift.monitor import Drift
from serving.hooks import RequestHook
from serving.http.application import ServingApp, error_response
from serving.http.endpoints import (
    admin,
    api_docs,
    feedback,
    open_inference,
    status_data,
    status_page,
    webhooks,
)
from serving.http.http_context import context_of
from serving.http.routing import Router
from serving.journal.observer import JournalObserver
from serving.models.selector import ModelSelector
from serving.models.slot import Slot, SlotOnDemand
from serving.observers import tracing
from serving.observers.access_log import AccessLog
from serving.observers.state_collector import StateCollector
from serving.observers.traffic_history import TrafficHistory
from serving.processes import gc_tuning
from serving.processes.launcher import Launcher
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.gate import Gate
from serving.registry.history import History
from serving.registry.on_demand import LoadedModelLimit, OnDemandModel
from serving.registry.tag_writer import TagWriter
from serving.rollout.canary import Canary
from serving.rollout.shadow import Shadow
from serving.rollout.status import Rollouts
from serving.server.tls_certificate import Certificate
from serving.settings.settings import Settings
from serving.supervision import Supervisor
from serving.telemetry import event_loop_lag
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving")

_MANY = 4
"""So many models look at the registry together."""
_MAX_SPREAD_SECONDS = 1.0
"""Within so many seconds, at random, each front tells the registry what became of a version."""
_MIN_SECONDS = 1.0
"""Those who watch have this time to end, however long it took to drain."""


def create_asgi_app(settings: Settings, fleet: Cluster | None = None) -> tuple[ASGIApp, ServingApp]:
    """What a server is given, and the application in it; pages from elsewhere may ask, if they are to."""
    app = create_app(settings, fleet)
    if not settings.cors_origins:
        return app, app
    of_models = ("X-Model-Name", "X-Model-Version", "X-Request-ID", "X-Prediction-ID")
    shared = (*of_models, "Retry-After", "Server-Timing")
    asked = ("Authorization", "Content-Type", "X-API-Key", "X-Model", "X-Request-ID", "X-Request-Timeout")
    traced = ("traceparent", "tracestate")
    origins, methods = list(settings.cors_origins), ["GET", "POST"]
    return CORSMiddleware(app, origins, methods, asked + traced, expose_headers=shared), app


def create_app(settings: Settings, fleet: Cluster | None = None) -> ServingApp:
    """The application that serves the models which the settings name, alone or as one of a fleet.

    Raises:
        BadKeys: the file of keys can't be read.
        Untraceable: traces are asked for that can't be sent.
    """
    registry = RegistryClient(settings)
    supervisor = Supervisor()
    launcher = Launcher.of(settings, settings, supervisor)
    store = ArtifactStore(settings.store_dir, registry.uri)
    metrics = Metrics()
    guard = (
        Authenticator(settings.keys_file, stale_seconds=settings.keys_stale_seconds)
        if settings.keys_file
        else None
    )
    timeline = TrafficHistory(metrics)
    gate = Gate(settings, registry, store, launcher, metrics)
    herald = TagWriter(registry, min(settings.poll_seconds, _MAX_SPREAD_SECONDS))
    slots = [
        Slot(reference, settings.replayed, required=_is_required(reference, settings.models))
        for reference in settings.models
    ]
    shadowing = [Slot(reference, settings.replayed, required=False) for reference in settings.shadow]
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
        for slot in (*slots, *shadowing, *on_demand)
    ]
    rota = LoadedModelLimit(settings.most_loaded)
    sleepers = [
        OnDemandModel(follower, slot, rota, settings.idle_seconds, time.monotonic, supervisor)
        for follower, slot in zip(followers[len(followers) - len(on_demand) :], on_demand, strict=True)
    ]
    models = ModelSelector([*slots, *shadowing, *on_demand])
    trials = Rollouts(
        [Canary(split, settings, herald) for split in models.splits.values()],
        [Shadow(slot, models.named()[slot.reference.name], herald) for slot in shadowing],
    )
    drift = Drift(settings.drift_psi)
    for told in (StateCollector(followers, registry, settings, guard), supervisor, *trials.all, drift):
        metrics.registry.register(told)
    access = AccessLog(settings.access_log)
    observers: list[RequestHook] = [*tracing.observers(), *([access] if access.share else []), *trials.all]
    observers += [drift] if settings.drift_psi else []
    journal = JournalObserver(settings, metrics, registry, supervisor) if settings.journal_url else None
    journals = [journal] if journal else []
    observers += journals
    dataplane = DataPlane(models, settings, metrics, observers, access.ended, settings.sticky)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with suppress(errors.ProcessDied):  # the first model process tries again
            launcher.start()
        if fleet:
            await _adopt_cluster_versions(fleet, followers[: len(slots)])
        always = followers[: len(followers) - len(sleepers)]
        watching = [*trials.all, timeline, *([drift] if drift in observers else []), *journals]
        running = [
            supervisor.start(type(each).__name__.lower(), each.run)
            for each in (*always, *sleepers, *watching)
        ]
        running.append(
            supervisor.start(
                "event loop monitor", lambda: event_loop_lag.measure_loop_lag(metrics.loop_lag.observe)
            )
        )
        running.append(
            supervisor.start("heap settlement", lambda: _freeze_heap_when_ready(slots), finite=True)
        )
        try:
            async with _grpc_server(dataplane, settings, guard, app.certificate):
                yield
        finally:
            began = time.monotonic()
            for component in running:
                component.stop()
            await asyncio.gather(*(follower.unload("the service is stopping") for follower in followers))
            await launcher.aclose()
            left = max(_MIN_SECONDS, settings.drain_seconds - (time.monotonic() - began))
            await asyncio.gather(*(observer.aclose(left) for observer in observers))
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
    app.dataplane, app.predictions = dataplane, Router(dataplane)
    app.metrics, app.slots = metrics, models.slots
    app.guard = guard
    app.hosts = HostNames(settings.allowed_hosts) if settings.allowed_hosts else None
    app.origins, app.admin_port = settings.cors_origins, settings.admin_port
    telling = [trials.tell, *(journal.tell for journal in journals)]
    tellers = [*telling, drift.tell]
    probe_tellers = [*telling, drift.summary] if guard else tellers
    routers = [
        admin.router(followers, registry, metrics, tellers, probe_tellers, guard, fleet, supervisor),
        status_data.router(followers, registry, timeline, tellers),
        status_page.router(),
        feedback.router(journal, settings),
        open_inference.router(models),
        api_docs.router(app, models, has_keys=guard is not None),
    ]
    if settings.webhook_secret:
        secret = settings.webhook_secret.get_secret_value()
        routers.append(webhooks.router(secret, [follower.wake for follower in followers]))
    for each in routers:  # flat, so that `required` sees every route
        app.router.routes.extend(each.routes)
    for kind in (errors.ServingError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(
            kind, lambda request, error: error_response(context_of(request.scope), error)
        )
    return app


def _is_required(reference: Reference, models: Sequence[Reference]) -> bool:
    """Whether the service is not ready without it: of several that share a model, the first is enough."""
    return reference.weight is None or reference is next(
        each for each in models if each.name == reference.name
    )


def _grpc_server(
    dataplane: DataPlane, settings: Settings, guard: Authenticator | None, certificate: Certificate | None
) -> AbstractAsyncContextManager[None]:
    if settings.grpc_port is None:
        return nullcontext()
    from serving.grpc import servicer  # requires an extra

    return servicer.run_grpc_server(dataplane, settings, guard, certificate)


async def _adopt_cluster_versions(fleet: Cluster, followers: Sequence[Follower]) -> None:
    """Have live what the others in the fleet have, if there are any."""
    live = majority_versions(await fleet.look())
    await asyncio.gather(
        *(each.adopt(live[uri]) for each in followers if (uri := each.slot.reference.uri) in live)
    )


async def _freeze_heap_when_ready(slots: Sequence[Slot]) -> None:
    """Once the first versions are up, take what is on the heap out of garbage collection."""
    for slot in slots:
        await slot.ready.wait()
    gc_tuning.freeze()
