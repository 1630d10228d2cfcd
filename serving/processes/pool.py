"""Keeps the model processes of one version: starts them together and replaces them when they die."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serving.backoff import Backoff
from serving.errors import ProcessDied
from serving.processes import framing
from serving.processes.launcher import Launcher
from serving.processes.memory_limit import resident_bytes, wait_until_exceeded
from serving.processes.replica import Replica, ReplicaState
from serving.promotion_errors import LoadFailed
from serving.supervision import Component
from serving.telemetry.metrics import ExitReason

log = logging.getLogger("serving.pool")
_STABLE_SECONDS = 30.0
_BACKOFF = Backoff(first_seconds=0.5, max_seconds=30.0)


def next_backoff(pause: float, lived: float) -> float:
    """Return the seconds to wait before the next replacement of a dead process.

    Args:
        pause: The previous wait; negative if there was none.
        lived: Seconds for which the dead process lived.
    """
    return 0.0 if lived > _STABLE_SECONDS or pause < 0 else _BACKOFF.following(pause)


class Pool:
    """Keeps `count` processes with the model in `folder`.

    Args:
        launcher: Launches the processes.
        folder: The artifacts of the version.
        count: Number of processes.
        load_seconds: Limit on the time for loading the model.
        max_process_bytes: A process that uses more memory is replaced, without failing its request.
        max_output_bytes: Limit on the output of one call.
        log_context: Fields of the log lines about the processes.
        on_ready: Called with a process that can take its first table.
        on_death: Called when a process has ended unexpectedly.
        on_restart: Called when another process has replaced it.
    """

    def __init__(
        self,
        launcher: Launcher,
        folder: Path,
        *,
        count: int,
        load_seconds: float,
        max_process_bytes: int | None = None,
        max_output_bytes: int = framing.MAX_BYTES,
        log_context: Mapping[str, Any] = MappingProxyType({}),
        on_ready: Callable[[Replica], None],
        on_death: Callable[[ExitReason], None],
        on_restart: Callable[[ExitReason], None],
    ) -> None:
        self._launcher, self._folder = launcher, folder
        self._count, self._load_seconds, self._max_process_bytes = count, load_seconds, max_process_bytes
        self._on_ready, self._on_death, self._on_restart = on_ready, on_death, on_restart
        self._log_context, self._max_output_bytes = log_context, max_output_bytes
        self._supervisors: list[Component] = []
        self.replicas: list[Replica] = []

    async def start(self) -> None:
        """Start all processes and load the model in them; kill all of them if one fails.

        Raises:
            LoadFailed: A process raised, hung or died while loading.
            ProcessDied: The fork server died.
        """
        try:
            async with asyncio.TaskGroup() as group:
                starting = [group.create_task(self._start_one()) for _ in range(self._count)]
        except BaseException as error:
            self.kill()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        self.replicas = [task.result() for task in starting]

    async def start_extra(self) -> Replica:
        """Start another process, which is not handed out and not replaced; the caller kills it.

        Raises:
            LoadFailed: It raised, hung or died while loading.
            ProcessDied: The fork server died.
        """
        return await self._new()

    async def renew(self) -> None:
        """Replace the processes that have died or are still busy with an abandoned call.

        Raises:
            LoadFailed: The new process raised, hung or died while loading.
        """
        for index, replica in enumerate(self.replicas):
            if replica.state is not ReplicaState.IDLE:
                replica.kill()
                self.replicas[index] = await self._new()

    @property
    def has_process(self) -> bool:
        """Return whether one of the processes is alive."""
        return any(replica.state is not ReplicaState.DEAD for replica in self.replicas)

    def memory(self) -> list[int | None]:
        """Return the resident bytes of the processes; None for a process that is not alive."""
        return [
            None if replica.state is ReplicaState.DEAD else resident_bytes(replica.pid)
            for replica in self.replicas
        ]

    def keep(self) -> None:
        """Hand out the processes, and from now on replace those that die."""
        detail = f"of {self._log_context.get('model', self._folder.name)}"
        for index, replica in enumerate(self.replicas):
            self._on_ready(replica)
            supervise = partial(self._supervise, index)
            self._supervisors.append(self._launcher.supervisor.start("process keeper", supervise, detail))

    def kill(self) -> None:
        """Kill all processes now."""
        for supervisor in self._supervisors:
            supervisor.stop()
        for replica in self.replicas:
            replica.kill()
        if self._launcher.is_dedicated:
            self._launcher.close()

    async def _new(self) -> Replica:
        return await Replica.start(
            self._launcher, self._folder, self._load_seconds, self._log_context, self._max_output_bytes
        )

    async def _start_one(self) -> Replica:
        replica = await self._new()
        self.replicas.append(replica)
        return replica

    async def _supervise(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        pause, started = -1.0, loop.time()
        while True:
            old = self.replicas[index]
            if await wait_until_exceeded(old, self._max_process_bytes, self._log_context):
                megabytes = resident_bytes(old.pid) >> 20
                log.warning("%r has grown to %d MB, and is replaced", old, megabytes, extra=self._log_context)
                self._install(index, await self._replacement(0.0), ExitReason.MEMORY)
                old.retire()
                self._on_death(ExitReason.MEMORY)
                continue
            self._on_death(old.ending)
            pause = next_backoff(pause, loop.time() - started)
            log.warning("%r has died; the next starts in %g s", old, pause, extra=self._log_context)
            started = loop.time()
            self._install(index, await self._replacement(pause), old.ending)

    def _install(self, index: int, replica: Replica, ending: ExitReason) -> None:
        self.replicas[index] = replica
        self._on_restart(ending)
        self._on_ready(replica)

    async def _replacement(self, pause: float) -> Replica:
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._new()
            except (LoadFailed, ProcessDied) as error:
                pause = next_backoff(pause, 0.0)
                message = "no model process could be started: %s; the next attempt is in %g s"
                log.error(message, error, pause, extra=self._log_context)
