"""Models that are loaded when somebody asks for them, and unloaded when nobody has for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from serving.registry.follower import Follower
from serving.runtime.slot import SlotOnDemand

log = logging.getLogger("serving.sleeper")
_SECONDS_AFTER_FAILURE = 2.0


class Rota:
    """Who is awake: at most so many at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._awake: set[Sleeper] = set()

    async def admit(self, sleeper: Sleeper) -> bool:
        """Let one more wake, for which the one that has been idle for longest goes to sleep if need be.

        False if all are busy.
        """
        while len(self._awake) >= self._most:
            idle = [each for each in self._awake if each.may_rest]
            if not idle:
                return False
            await min(idle, key=lambda each: each.slot.used_at).rest()
        self._awake.add(sleeper)
        return True

    def dismiss(self, sleeper: Sleeper) -> None:
        """It sleeps."""
        self._awake.discard(sleeper)


class Sleeper:
    """Follows one reference while its model is in use, and has nothing loaded the rest of the time.

    Args:
        follower: follows the reference, when it is let.
        slot: what the follower fills.
        rota: who is awake.
        idle_seconds: the time without a request after which the model is unloaded.
        clock: seconds, on the clock by which the slot tells when it was used.
    """

    def __init__(
        self,
        follower: Follower,
        slot: SlotOnDemand,
        rota: Rota,
        idle_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.slot = slot
        self._follower, self._rota = follower, rota
        self._idle_seconds, self._clock = idle_seconds, clock
        self._dismissed, self._asleep = asyncio.Event(), asyncio.Event()
        self._asleep.set()
        self._reason, self._tired_until = "", 0.0

    @property
    def may_rest(self) -> bool:
        """Whether it is loaded, and no request holds it."""
        return self.slot.live is not None and not self.slot.live.is_held and not self._dismissed.is_set()

    async def run(self) -> None:
        """Wake and sleep until cancelled."""
        while True:
            await self.slot.wanted.wait()
            try:
                if await self.wake():
                    await self._follow()
            except Exception:  # a mistake in here must not end the waking
                log.exception("%s could not be woken", self.slot.reference)
                self._fail("the serving front made a mistake; see its log")
            await self.sleep()

    async def wake(self) -> bool:
        """Load what the reference names now, and tell those who wait; False if that can't be."""
        self._dismissed.clear()
        if self._clock() < self._tired_until:
            self._fail(self._reason)
            return False
        if not await self._rota.admit(self):
            self._fail("as many models as may be loaded at once are busy")
            return False
        self._asleep.clear()
        await self._follower.tick()
        await self._follower.settled()
        if not self.slot.live:
            self._reason, self._tired_until = self.slot.reason, self._clock() + _SECONDS_AFTER_FAILURE
            self._fail(self._reason)
            return False
        self.slot.wanted.clear()
        self.slot.answer(None)
        return True

    async def sleep(self) -> None:
        """Unload the model, once the requests that hold it are answered."""
        await self._follower.empty("it is asleep")
        self._rota.dismiss(self)
        self._asleep.set()

    async def rest(self) -> None:
        """Sleep now, so that another may wake."""
        self._dismissed.set()
        await self._asleep.wait()

    def idle_for(self) -> float:
        """Seconds until it is to sleep; nothing or less if it is now, a moment if a request holds it."""
        left = self.slot.used_at + self._idle_seconds - self._clock()
        return max(left, 0.1) if self.slot.live and self.slot.live.is_held else left

    def _fail(self, reason: str) -> None:
        self.slot.wanted.clear()
        self.slot.answer(reason)

    async def _follow(self) -> None:
        following = asyncio.create_task(self._follower.run())
        try:
            while (left := self.idle_for()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._dismissed.wait()
                        return
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
