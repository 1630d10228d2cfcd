"""The same application as a deployment of Ray Serve: `serve run serving.integrations.ray:app`.

Each replica is a front with model processes of its own, which follows the registry itself. Ray starts and
ends replicas, and its proxies, to which clients connect, pass requests on to them.
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
from serving.cluster import ClusterView, InstanceState, divergence, state
from serving.errors import NotLive
from serving.models.slot import Slot
from serving.processes import confinement
from serving.settings.settings import OPTIONS, Settings, env_name, format_errors
from serving.telemetry.logging import configure as configure_logging

_START = "start_seconds"
_START_SECONDS = 600.0
_SECONDS = TypeAdapter(PositiveFloat)
_OF_PROXY = ("host", "port", "max_connections")
"""What Ray's proxy is told instead, in `http_options`."""
_NOT_THERE = ("grpc_port", "admin_port", "tls_cert", "tls_key")
"""What would be missed if it were passed over."""
_SECONDS_TO_TELL = 2.0
_SECONDS_BETWEEN_LOOKS = 0.2


class BadArguments(Exception):
    """Settings or arguments that a replica can't be made of; a line for each mistake."""


def app(args: dict[str, Any]) -> serve.Application:
    """What `serve run` and `serve deploy` are given; arguments are settings by their names, as `max_rows`.

    Others are read from the environment, here and once for all replicas. `start_seconds` is the time that a
    replica has until all its models are live; Ray then tries another one.

    Raises:
        BadArguments: they are no settings, or not of this kind.
    """
    settings, start_seconds = configured(args)
    return _front.options(
        max_ongoing_requests=2
        * settings.max_queue_size,  # the front refuses better than Ray does: sooner, and why
        graceful_shutdown_timeout_s=settings.drain_seconds + 10,
        ray_actor_options={"num_cpus": settings.replicas},
    ).bind(settings, start_seconds)


def configured(args: Mapping[str, Any]) -> tuple[Settings, float]:
    """The settings that arguments and environment make, and the seconds in which a replica has to be live.

    Raises:
        BadArguments: as `app` tells.
    """
    given = {name: _joined(value) for name, value in args.items()}
    start_seconds = given.pop(_START, _START_SECONDS)
    lines = [f"{name}: there is no such setting" for name in given if name not in OPTIONS]
    lines += [f"{name}: Ray's proxy listens; tell it in http_options" for name in given if name in _OF_PROXY]
    try:
        settings = Settings(**{name: value for name, value in given.items() if name in OPTIONS})
        lines += [
            f"{env_name(name)}: Ray's proxy listens, and alone"
            for name in _NOT_THERE
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


def _joined(value: Any) -> Any:
    """A list in a config file as its setting has it."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


class RayAsgiAdapter:
    """The application as Ray's proxies call it, whose lifespan begins before Ray's and ends with it.

    They leave a route prefix in the path, and add `X-Request-ID` to answers themselves.
    """

    def __init__(self, application: ASGIApp, running: AsyncExitStack) -> None:
        self._application, self._running = application, running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
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

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._running.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class RayReplica:
    """A front, and what it knows of the others: Ray calls its methods."""

    def __init__(self, settings: Settings, start_seconds: float) -> None:
        context = serve.get_replica_context()
        self._settings, self._start_seconds = settings, start_seconds
        self._id, self._node = context.replica_tag, ray.get_runtime_context().get_node_id()
        self._all = serve.get_deployment_handle(context.deployment, context.app_name)
        self._slots: Sequence[Slot] = ()
        self._registry = CollectorRegistry()
        self._looking: asyncio.Task[ClusterView] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, once all its models are live: Ray passes no request on before.

        Raises:
            NotLive: they are not in time.
        """
        _tell(self._settings)
        private_files.set_umask()
        private_files.restrict(self._settings, self._settings)
        confinement.hide_memory()
        application_, front = create_asgi_app(self._settings, self)
        self._slots, self._registry = front.slots, front.metrics.registry
        async with AsyncExitStack() as starting:
            await starting.enter_async_context(front.router.lifespan_context(front))
            await self._join()
            return RayAsgiAdapter(application_, starting.pop_all())

    async def check_health(self) -> None:
        """Show that the front's event loop turns, which calls this."""

    async def live(self) -> InstanceState:
        """What is live here."""
        return state(self._id, self._node, self._slots)

    async def measured(self) -> tuple[str, str]:
        """This replica's id, and what was counted and timed here."""
        return self._id, (await asyncio.to_thread(generate_latest, self._registry)).decode()

    async def measure(self) -> dict[str, str]:
        """What each replica has counted and timed, as far as it tells that in time."""
        answers = await self._ask("measured")
        return dict(answer for answer in answers if isinstance(answer, tuple))

    async def look(self) -> ClusterView:
        """What all replicas tell that are in service, of which one look is under way at a time."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> ClusterView:
        answers = await self._ask("live")
        replicas = [answer for answer in answers if isinstance(answer, InstanceState)]
        return ClusterView(replicas, silent=len(answers) - len(replicas))

    async def _ask(self, method: str) -> list[Any]:
        """What each replica in service answers, or an exception for those that may live and don't."""
        try:
            answers = await self._all.broadcast(method).results_async(
                timeout_s=_SECONDS_TO_TELL, return_exceptions=True
            )
        except DeploymentUnavailableError:
            return []
        except TimeoutError as error:
            return [await getattr(self, method)(), error]
        return [answer for answer in answers if not isinstance(answer, ActorDiedError)]

    async def _join(self) -> None:
        reason: str | None = "it is being resolved"
        try:
            async with asyncio.timeout(self._start_seconds):
                while reason := await self.readiness_blocker():  # noqa: ASYNC110  # others' versions are no event here
                    await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        except TimeoutError:
            raise NotLive(f"not live after {self._start_seconds:g} s: {reason}") from None

    async def readiness_blocker(self) -> str | None:
        """Why this replica can't serve yet.

        Who tells nothing in time does not keep it out: replicas that are busy are why it is started, and what
        they have refused it has from the registry's tags.
        """
        required = [slot for slot in self._slots if slot.required]
        for slot in required:
            if not slot.live:
                return f"{slot.reference}: {slot.reason}"
        return divergence(state(self._id, self._node, required).models, await self.look())


def _tell(settings: Settings) -> None:
    """Have the log and the metrics of this process as those of a front that is alone."""
    secret = settings.webhook_secret
    configure_logging(settings.log_format, settings.log_level, [secret.get_secret_value()] if secret else [])
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped


_front = serve.deployment(name="front")(serve.ingress()(RayReplica))
