"""Models that are loaded by their first request, and unloaded when they have been idle for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from serving.models.on_demand_slot import SlotOnDemand
from serving.registry.follower import Follower
from serving.supervision import Supervisor

log = logging.getLogger("serving.on_demand")
_RETRY_SECONDS = 2.0


class LoadedModelLimit:
    """Limits how many models are loaded at once; evicts the one that has been idle for longest."""

    def __init__(self, max_loaded: int) -> None:
        self._max_loaded = max_loaded
        self._loaded: set[OnDemandModel] = set()

    async def admit(self, model: OnDemandModel) -> bool:
        """Let a model load, after the eviction of another if necessary; return False if all are busy."""
        while len(self._loaded) >= self._max_loaded:
            leaving = [loaded for loaded in self._loaded if loaded.is_leaving]
            idle = [loaded for loaded in self._loaded if loaded.is_evictable]
            if not leaving and not idle:
                return False
            await (leaving[0] if leaving else min(idle, key=lambda loaded: loaded.slot.used_at)).evict()
        self._loaded.add(model)
        return True

    def release(self, model: OnDemandModel) -> None:
        """Record that a model is unloaded."""
        self._loaded.discard(model)


class OnDemandModel:
    """Follows one reference while its model is in use, and has nothing loaded the rest of the time.

    Args:
        follower: follows the reference while the model is loaded.
        slot: the slot that the follower fills.
        limit: the limit that this model shares with the other models on demand.
        idle_seconds: the time without a request after which the model is unloaded.
        clock: returns the monotonic time in seconds, by which the slot records its last use.
        supervisor: restarts the follower if it ends while the model is in use.
    """

    def __init__(
        self,
        follower: Follower,
        slot: SlotOnDemand,
        limit: LoadedModelLimit,
        idle_seconds: float,
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        self.slot = slot
        self._follower, self._limit = follower, limit
        self._idle_seconds, self._clock = idle_seconds, clock
        self._supervisor = supervisor or Supervisor()
        self._evicted, self._unloaded = asyncio.Event(), asyncio.Event()
        self._unloaded.set()
        self._failure, self._retry_after = "", 0.0

    @property
    def is_evictable(self) -> bool:
        """Return whether it is loaded, and no request holds it."""
        return self.slot.live is not None and not self.slot.in_use

    @property
    def is_leaving(self) -> bool:
        """Return whether it is being unloaded."""
        return self._evicted.is_set()

    async def run(self) -> None:
        """Load and unload the model until cancelled."""
        while True:
            await self.slot.wanted.wait()
            try:
                if await self.load():
                    await self._follow()
            except Exception:  # an error in this module must not end the loop
                log.exception(
                    "unhandled error while loading %s", self.slot.reference, extra=self.slot.in_logs
                )
                self._fail("internal error in the serving front; see its log")
            await self.unload()

    async def load(self) -> bool:
        """Load the version that the reference names now, and resume the waiting requests.

        Return False if no version can be loaded.
        """
        self._evicted.clear()
        if self._clock() < self._retry_after:
            self.slot.resolve_waiters(self._failure)
            return False
        if not await self._limit.admit(self):
            self.slot.resolve_waiters("as many models as may be loaded at once are busy")
            return False
        self._unloaded.clear()
        await self._follower.load()
        if not self.slot.live:
            self._fail(self.slot.reason)
            return False
        self._failure = ""
        self.slot.mark_loaded(self._clock())
        return True

    async def unload(self) -> None:
        """Unload the model, once the requests that hold it have ended."""
        self._evicted.set()
        failure = f"; the last load failed: {self._failure}" if self._failure else ""
        await self._follower.unload(f"it is asleep{failure}")
        self._limit.release(self)
        self._unloaded.set()

    async def evict(self) -> None:
        """Unload the model now, so that another can be loaded."""
        self._evicted.set()
        await self._unloaded.wait()

    def seconds_until_idle(self) -> float:
        """Return the seconds until it may have to be unloaded; zero or less if it is idle now."""
        if self.slot.in_use:
            return self._idle_seconds
        return self.slot.used_at + self._idle_seconds - self._clock()

    def _fail(self, reason: str) -> None:
        self._failure, self._retry_after = reason, self._clock() + _RETRY_SECONDS
        self.slot.resolve_waiters(reason)

    async def _follow(self) -> None:
        """Run the follower until the model is idle or evicted."""
        component = self._supervisor.start("follower", self._follower.run, self.slot.reference.uri)
        try:
            while (left := self.seconds_until_idle()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._evicted.wait()
                        return
        finally:
            component.stop()
            await component.wait()
