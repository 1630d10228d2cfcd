"""Models that are loaded when somebody asks for them, and unloaded when nobody has for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from serving.models.on_demand_slot import SlotOnDemand
from serving.registry.follower import Follower
from serving.supervision import Supervisor

log = logging.getLogger("serving.sleeper")
_SECONDS_AFTER_FAILURE = 2.0


class LoadedModelLimit:
    """Who is awake: at most so many at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._awake: set[OnDemandModel] = set()

    async def admit(self, sleeper: OnDemandModel) -> bool:
        """Let one more wake, for which the one that has been idle for longest goes to sleep if need be.

        False if all are busy.
        """
        while len(self._awake) >= self._most:
            leaving = [each for each in self._awake if each.is_leaving]
            idle = [each for each in self._awake if each.is_evictable]
            if not leaving and not idle:
                return False
            await (leaving[0] if leaving else min(idle, key=lambda each: each.slot.used_at)).evict()
        self._awake.add(sleeper)
        return True

    def dismiss(self, sleeper: OnDemandModel) -> None:
        """It sleeps."""
        self._awake.discard(sleeper)


class OnDemandModel:
    """Follows one reference while its model is in use, and has nothing loaded the rest of the time.

    Args:
        follower: follows the reference, when it is let.
        slot: what the follower fills.
        rota: who is awake.
        idle_seconds: the time without a request after which the model is unloaded.
        clock: seconds, as the monotonic clock tells them, by which the slot says when it was used.
        supervisor: restarts the follower if it ends while the model is in use.
    """

    def __init__(
        self,
        follower: Follower,
        slot: SlotOnDemand,
        rota: LoadedModelLimit,
        idle_seconds: float,
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        self.slot = slot
        self._follower, self._rota = follower, rota
        self._idle_seconds, self._clock = idle_seconds, clock
        self._supervisor = supervisor or Supervisor()
        self._dismissed, self._asleep = asyncio.Event(), asyncio.Event()
        self._asleep.set()
        self._failure, self._tired_until = "", 0.0

    @property
    def is_evictable(self) -> bool:
        """Whether it is loaded, and no request holds it."""
        return self.slot.live is not None and not self.slot.in_use

    @property
    def is_leaving(self) -> bool:
        """Whether it goes to sleep already."""
        return self._dismissed.is_set()

    async def run(self) -> None:
        """Wake and sleep until cancelled."""
        while True:
            await self.slot.wanted.wait()
            try:
                if await self.load():
                    await self._follow()
            except Exception:  # a mistake in here must not end the waking
                log.exception("%s could not be woken", self.slot.reference, extra=self.slot.in_logs)
                self._fail("the serving front made a mistake; see its log")
            await self.evict_when_idle()

    async def load(self) -> bool:
        """Load what the reference names now, and tell those who wait; False if that can't be."""
        self._dismissed.clear()
        if self._clock() < self._tired_until:
            self.slot.resolve_waiters(self._failure)
            return False
        if not await self._rota.admit(self):
            self.slot.resolve_waiters("as many models as may be loaded at once are busy")
            return False
        self._asleep.clear()
        await self._follower.load()
        if not self.slot.live:
            self._fail(self.slot.reason)
            return False
        self._failure, self.slot.filled_at = "", self._clock()
        self.slot.resolve_waiters(None)
        return True

    async def evict_when_idle(self) -> None:
        """Unload the model, once the requests that hold it are answered."""
        self._dismissed.set()
        failed = f", and could not be woken: {self._failure}" if self._failure else ""
        await self._follower.unload(f"it is asleep{failed}")
        self._rota.dismiss(self)
        self._asleep.set()

    async def evict(self) -> None:
        """Sleep now, so that another may wake."""
        self._dismissed.set()
        await self._asleep.wait()

    def idle_for(self) -> float:
        """Seconds until it may have to sleep; nothing or less if it is to sleep now."""
        if self.slot.in_use:
            return self._idle_seconds
        return self.slot.used_at + self._idle_seconds - self._clock()

    def _fail(self, reason: str) -> None:
        self._failure, self._tired_until = reason, self._clock() + _SECONDS_AFTER_FAILURE
        self.slot.resolve_waiters(reason)

    async def _follow(self) -> None:
        following = self._supervisor.start("follower", self._follower.run, self.slot.reference.uri)
        try:
            while (left := self.idle_for()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._dismissed.wait()
                        return
        finally:
            following.stop()
            await following.wait()
