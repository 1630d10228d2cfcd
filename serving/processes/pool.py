"""The model processes of one version: started together, replaced when they die."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serving.backoff import Backoff
from serving.errors import LoadFailed, ProcessDied
from serving.processes import framing
from serving.processes.descendants import StopDetector
from serving.processes.launcher import Launcher
from serving.processes.replica import Replica, ReplicaState
from serving.supervision import Component
from serving.telemetry.metrics import ExitReason

log = logging.getLogger("serving.pool")
_STEADY_SECONDS = 30.0
_BACKOFF = Backoff(first_seconds=0.5, max_seconds=30.0)
_SECONDS_BETWEEN_LOOKS = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def next_backoff(pause: float, lived: float) -> float:
    """Seconds to wait before a dead process is replaced: none at first, then growing while they die young."""
    return 0.0 if lived > _STEADY_SECONDS or pause < 0 else _BACKOFF.following(pause)


def resident_bytes(pid: int | None) -> int:
    """The memory that a process holds, what it shares with others included; 0 where nothing tells that."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


class Pool:
    """Keeps `count` processes with the model in `folder`.

    `on_ready` is called with each process that can take its first table, `on_death` when one has ended that
    should not have, and `on_restart` when another has taken its place. One that holds more than `most_bytes`
    of memory is replaced, without a request that waits for it. Lines of the log on them tell what is `told`.
    """

    def __init__(
        self,
        launcher: Launcher,
        folder: Path,
        *,
        count: int,
        load_seconds: float,
        most_bytes: int | None = None,
        max_output_bytes: int = framing.MAX_BYTES,
        told: Mapping[str, Any] = MappingProxyType({}),
        on_ready: Callable[[Replica], None],
        on_death: Callable[[ExitReason], None],
        on_restart: Callable[[ExitReason], None],
    ) -> None:
        self._launcher, self._folder = launcher, folder
        self._count, self._load_seconds, self._most_bytes = count, load_seconds, most_bytes
        self._on_ready, self._on_death, self._on_restart = on_ready, on_death, on_restart
        self._told, self._max_answer_bytes = told, max_output_bytes
        self._keepers: list[Component] = []
        self.replicas: list[Replica] = []

    async def start(self) -> None:
        """Start all processes and load the model in each; none is left if one can't.

        Raises:
            LoadFailed: a process raised, hung or died while loading.
            ProcessDied: the fork server died.
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

    async def renew(self) -> None:
        """Replace the processes that have died, or still work on what nobody waits for.

        Raises:
            LoadFailed: the new process raised, hung or died while loading.
        """
        for index, replica in enumerate(self.replicas):
            if replica.state is not ReplicaState.IDLE:
                replica.kill()
                self.replicas[index] = await self._new()

    @property
    def has_process(self) -> bool:
        """Whether one of the processes is up."""
        return any(replica.state is not ReplicaState.DEAD for replica in self.replicas)

    def memory(self) -> list[int | None]:
        """The resident bytes of each process, None of one that is not up."""
        return [
            None if replica.state is ReplicaState.DEAD else resident_bytes(replica.pid)
            for replica in self.replicas
        ]

    def keep(self) -> None:
        """Hand out the processes, and from now on replace those that die."""
        for index, replica in enumerate(self.replicas):
            self._on_ready(replica)
            keep, detail = partial(self._supervise, index), f"of {self._told.get('model', self._folder.name)}"
            self._keepers.append(self._launcher.supervisor.start("process keeper", keep, detail))

    def kill(self) -> None:
        """End all processes now."""
        for keeper in self._keepers:
            keeper.stop()
        for replica in self.replicas:
            replica.kill()
        if self._launcher.is_dedicated:
            self._launcher.close()

    async def _new(self) -> Replica:
        return await Replica.start(
            self._launcher, self._folder, self._load_seconds, self._told, self._max_answer_bytes
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
            if await self._wait_for_exit_or_oom(old):
                megabytes = resident_bytes(old.pid) >> 20
                log.warning("%r has grown to %d MB, and is replaced", old, megabytes, extra=self._told)
                self._install(index, await self._replacement(0.0), ExitReason.MEMORY)
                old.retire()
                self._on_death(ExitReason.MEMORY)
                continue
            self._on_death(old.ending)
            pause = next_backoff(pause, loop.time() - started)
            log.warning("%r has died; the next starts in %g s", old, pause, extra=self._told)
            started = loop.time()
            self._install(index, await self._replacement(pause), old.ending)

    def _install(self, index: int, replica: Replica, ending: ExitReason) -> None:
        self.replicas[index] = replica
        self._on_restart(ending)
        self._on_ready(replica)

    async def _wait_for_exit_or_oom(self, replica: Replica) -> bool:
        """Wait until it has died, or has more memory than it may have: then true."""
        most = self._most_bytes
        if most is not None and resident_bytes(replica.pid) > most:
            said = "%r has more than %d MB for its model alone, and is not replaced"
            log.error(said, replica, most >> 20, extra=self._told)
            most = None
        stopped = StopDetector()
        while not replica.dead.done():
            await asyncio.wait([replica.dead], timeout=_SECONDS_BETWEEN_LOOKS)
            if stopped.detects(replica.pid):
                log.error("%r was stopped by a signal, and is replaced", replica, extra=self._told)
                replica.kill_hung()
            if most is not None and resident_bytes(replica.pid) > most:
                return True
        return False

    async def _replacement(self, pause: float) -> Replica:
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._new()
            except (LoadFailed, ProcessDied) as error:
                pause = next_backoff(pause, 0.0)
                said = "no new model process: %s; the next try is in %g s"
                log.error(said, error, pause, extra=self._told)
