"""Run the service as a deployment of Ray Serve: `serve run serving.integrations.ray:app`.

Each Ray replica is a front, with its own model processes and its own followers of the registry. Ray starts
and ends the replicas. Clients connect to Ray's proxies, which pass the requests on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import ray
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from pydantic import PositiveFloat, TypeAdapter, ValidationError
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import private_files
from serving.app import create_asgi_app
from serving.cluster import ClusterView, InstanceState, divergence, instance_state
from serving.errors import NotLive
from serving.models.slot import Slot
from serving.processes import privileges
from serving.settings.settings import OPTIONS, Settings, env_name, format_errors
from serving.telemetry.logging import configure as configure_logging

_START = "start_seconds"
_START_SECONDS = 600.0
_SECONDS = TypeAdapter(PositiveFloat)
_PROXY_SETTINGS = ("host", "port", "max_connections")
"""Settings of the service whose counterparts are in Ray's `http_options`."""
_UNSUPPORTED_SETTINGS = ("grpc_port", "admin_port", "tls_cert", "tls_key")
"""Settings without a counterpart: to ignore them silently could expose the service."""
_VIEW_TIMEOUT_SECONDS = 2.0
_POLL_SECONDS = 0.2


class BadArguments(Exception):
    """Invalid settings or arguments; the message has a line for each mistake."""


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application for `serve run` and `serve deploy`.

    Args:
        args: Settings by their names, such as `max_rows`; the others are read from the environment, once for
            all replicas. `start_seconds` limits the time until all models of a replica are live; after it,
            Ray starts another replica.

    Raises:
        BadArguments: An argument is no setting, or is invalid.
    """
    settings, start_seconds = configured(args)
    return _front.options(
        # Let the front reject requests, rather than Ray: it does so earlier, and with a reason.
        max_ongoing_requests=2 * settings.max_queue_size,
        graceful_shutdown_timeout_s=settings.drain_seconds + 10,
        ray_actor_options={"num_cpus": settings.replicas},
    ).bind(settings, start_seconds)


def configured(args: Mapping[str, Any]) -> tuple[Settings, float]:
    """Return the settings from arguments and environment, and the start timeout of a replica in seconds.

    Raises:
        BadArguments: An argument is no setting, or is invalid.
    """
    options = {name: _join_list(value) for name, value in args.items()}
    start_seconds = options.pop(_START, _START_SECONDS)
    lines = [f"{name}: there is no such setting" for name in options if name not in OPTIONS]
    lines += [
        f"{name}: Ray's proxy listens; set it in http_options" for name in options if name in _PROXY_SETTINGS
    ]
    try:
        settings = Settings(**{name: value for name, value in options.items() if name in OPTIONS})
        lines += [
            f"{env_name(name)}: not supported on Ray, where only Ray's proxy listens"
            for name in _UNSUPPORTED_SETTINGS
            if getattr(settings, name) is not None
        ]
    except ValidationError as error:
        lines += format_errors(error)
    try:
        start_seconds = _SECONDS.validate_python(start_seconds)
    except ValidationError as error:
        lines.append(f"{_START}: {error.errors()[0]['msg']}")
    if lines:
        raise BadArguments("\n".join(lines))
    return settings, start_seconds


def _join_list(value: Any) -> Any:
    """Return a list from a configuration file in the form of its setting."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


class RayAsgiAdapter:
    """Adapts the application to Ray's proxies; its lifespan begins before Ray's and ends with it.

    The proxies leave a route prefix in the path, and add `X-Request-ID` to responses themselves.
    """

    def __init__(self, application: ASGIApp, running: AsyncExitStack) -> None:
        self._application, self._running = application, running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        prefix = scope.get("root_path", "")
        path = prefix + (scope["path"].removeprefix(prefix) or "/")
        added = [value for name, value in scope["headers"] if name == b"x-request-id"]

        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, value)
                    for name, value in message["headers"]
                    if name != b"x-request-id" or value not in added
                ]
            await send(message)

        await self._application({**scope, "path": path}, receive, once)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._running.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class RayReplica:
    """A front with access to the other fronts; Ray calls its methods."""

    def __init__(self, settings: Settings, start_seconds: float) -> None:
        context = serve.get_replica_context()
        self._settings, self._start_seconds = settings, start_seconds
        self._id, self._node = context.replica_tag, ray.get_runtime_context().get_node_id()
        self._all = serve.get_deployment_handle(context.deployment, context.app_name)
        self._slots: Sequence[Slot] = ()
        self._registry = CollectorRegistry()
        self._view: asyncio.Task[ClusterView] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application once all its models are live: Ray passes no requests on before.

        Raises:
            NotLive: A model is not live in time.
        """
        _configure_process(self._settings)
        private_files.set_umask()
        private_files.restrict(self._settings, self._settings)
        privileges.hide_memory()
        application, front = create_asgi_app(self._settings, self)
        self._slots, self._registry = front.slots, front.metrics.registry
        async with AsyncExitStack() as starting:
            await starting.enter_async_context(front.router.lifespan_context(front))
            await self._join()
            return RayAsgiAdapter(application, starting.pop_all())

    async def check_health(self) -> None:
        """Return if the front's event loop runs, which calls this method."""

    async def state(self) -> InstanceState:
        """Return the live versions of this front."""
        return instance_state(self._id, self._node, self._slots)

    async def metrics_text(self) -> tuple[str, str]:
        """Return this front's id and its metrics."""
        return self._id, (await asyncio.to_thread(generate_latest, self._registry)).decode()

    async def collect_metrics(self) -> dict[str, str]:
        """Return the metrics of the fronts that respond in time, by their ids."""
        results = await self._call_all("metrics_text")
        return dict(result for result in results if isinstance(result, tuple))

    async def view(self) -> ClusterView:
        """Return the states of the fronts in service; concurrent callers share one request."""
        if self._view is None or self._view.done():
            self._view = asyncio.create_task(self._collect_states())
        return await asyncio.shield(self._view)

    async def _collect_states(self) -> ClusterView:
        results = await self._call_all("state")
        instances = [result for result in results if isinstance(result, InstanceState)]
        return ClusterView(instances, silent=len(results) - len(instances))

    async def _call_all(self, method: str) -> list[Any]:
        """Call a method of each front in service; return an exception for each that did not respond."""
        try:
            results = await self._all.broadcast(method).results_async(
                timeout_s=_VIEW_TIMEOUT_SECONDS, return_exceptions=True
            )
        except DeploymentUnavailableError:
            return []
        except TimeoutError as error:
            return [await getattr(self, method)(), error]
        return [result for result in results if not isinstance(result, ActorDiedError)]

    async def _join(self) -> None:
        reason: str | None = "it is being resolved"
        try:
            async with asyncio.timeout(self._start_seconds):
                while reason := await self.readiness_blocker():  # noqa: ASYNC110  # the other fronts send no event
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise NotLive(f"not live after {self._start_seconds:g} s: {reason}") from None

    async def readiness_blocker(self) -> str | None:
        """Return why this front cannot serve yet; None if it can.

        Fronts that do not respond in time are ignored: Ray starts a new front because the others are busy,
        and the versions that they have rejected are in the registry's tags.
        """
        required = [slot for slot in self._slots if slot.required]
        for slot in required:
            if not slot.live:
                return f"{slot.reference}: {slot.reason}"
        own = instance_state(self._id, self._node, required)
        return divergence(own.models, await self.view())


def _configure_process(settings: Settings) -> None:
    """Configure logging and metrics as `serving run` does."""
    secret = settings.webhook_secret
    configure_logging(settings.log_format, settings.log_level, [secret.get_secret_value()] if secret else [])
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped


_front = serve.deployment(name="front")(serve.ingress()(RayReplica))
