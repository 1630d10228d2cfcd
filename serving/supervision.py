"""Supervises the long-running tasks of the service.

A long-running task is a component of a supervisor. When a component returns, raises or is cancelled
unexpectedly, the supervisor logs the event and restarts it with exponential backoff. `/ready` and the metrics
show it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("serving.supervision")
_STABLE_SECONDS = 30.0
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 5.0


class Component:
    """A task that is restarted until it is stopped.

    Args:
        supervisor: the supervisor that counts its restarts.
        name: the kind of component, for metrics.
        run: starts the work; called again for each restart.
        detail: distinguishes components of one kind in the log and in `/ready`.
        finite: whether returning is the regular end of the work.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        run: Callable[[], Awaitable[None]],
        detail: str,
        *,
        finite: bool,
    ) -> None:
        self.name, self.detail = name, detail
        self.restarts = 0
        self._supervisor, self._run, self._finite = supervisor, run, finite
        self._loop = asyncio.get_running_loop()
        self._pause, self._started = _MIN_PAUSE_SECONDS, 0.0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._start()

    def __repr__(self) -> str:
        return f"{self.name} {self.detail}".strip()

    @property
    def is_over(self) -> bool:
        """Return whether its work is done, or it was stopped."""
        return self._over.is_set()

    @property
    def is_running(self) -> bool:
        """Return whether it runs now, rather than waits for its restart."""
        return self._timer is None

    @property
    def is_steady(self) -> bool:
        """Return whether it runs and was not restarted recently."""
        is_recent = self._loop.time() - self._started < _STABLE_SECONDS
        return self.is_running and not (self.restarts and is_recent)

    def stop(self) -> None:
        """Stop it permanently."""
        self._finish()
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until its work is done, or it was stopped and has ended."""
        await self._over.wait()
        if self._task:
            await asyncio.gather(self._task, return_exceptions=True)

    def _start(self) -> None:
        self._timer, self._started = None, self._loop.time()
        self._task = self._loop.create_task(self._work(), name=repr(self))
        self._task.add_done_callback(self._ended)

    async def _work(self) -> None:
        await self._run()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._over.is_set():
            return
        if self._finite and not error and not task.cancelled():
            self._finish()
            return
        self.restarts += 1
        self._supervisor.restarts[self.name] += 1
        if self._loop.time() - self._started > _STABLE_SECONDS:
            self._pause = _MIN_PAUSE_SECONDS
        how = "was cancelled" if task.cancelled() else "failed" if error else "returned"
        log.error("%r %s unexpectedly; it restarts in %g s", self, how, self._pause, exc_info=error)
        self._timer = self._loop.call_later(self._pause, self._start)
        self._pause = min(2 * self._pause, _MAX_PAUSE_SECONDS)

    def _finish(self) -> None:
        self._over.set()
        self._supervisor.components.discard(self)


class Supervisor(Collector):
    """The components of one front."""

    def __init__(self) -> None:
        self.components: set[Component] = set()
        self.restarts: Counter[str] = Counter()
        """Restarts so far, by the name of the component; components that have ended count."""

    def start(
        self, name: str, run: Callable[[], Awaitable[None]], detail: str = "", *, finite: bool = False
    ) -> Component:
        """Start a component; see `Component` for the arguments."""
        component = Component(self, name, run, detail, finite=finite)
        self.components.add(component)
        self.restarts.setdefault(name, 0)
        return component

    @property
    def unsteady(self) -> list[Component]:
        """Return the components that wait for their restart, or were restarted a short time ago."""
        return sorted((component for component in self.components if not component.is_steady), key=repr)

    def collect(self) -> Iterable[Metric]:
        """Return the state of the components for Prometheus."""
        up = GaugeMetricFamily(
            "serving_component_up",
            "1 if all background components of this name are running.",
            labels=("component",),
        )
        restarts = CounterMetricFamily(
            "serving_component_restarts_total",
            "Restarts of background components that ended unexpectedly.",
            labels=("component",),
        )
        down = {component.name for component in list(self.components) if not component.is_running}
        for name, count in list(self.restarts.items()):
            up.add_metric((name,), name not in down)
            restarts.add_metric((name,), count)
        return up, restarts
