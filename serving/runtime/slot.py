"""Where requests and promotions meet: what is live for one model reference."""

from __future__ import annotations

import asyncio
import time

from serving.errors import Asleep, NotLive
from serving.reference import Reference
from serving.runtime.loaded import Loaded
from serving.runtime.replay import Recorder


class Slot:
    """What is live for one reference; a swap changes what the next request leases, and nothing else.

    The version that was live before stays `warm` while the new one is on probation.
    """

    required = True
    """Whether the service is not ready without it."""

    def __init__(self, reference: Reference, recorded: int = 0) -> None:
        self.reference = reference
        self.live: Loaded | None = None
        self.warm: Loaded | None = None
        self.recorder = Recorder(recorded)
        self.filled = asyncio.Event()
        """Set once the first version is live."""
        self.reason = "it is being resolved"
        """Why nothing is live, where nothing is."""
        self.warnings: tuple[str, ...] = ()
        """What a person should look at, though a version is live."""
        self._probation_ends = 0.0

    def __repr__(self) -> str:
        return f"<Slot {self.reference} live={self.live} warm={self.warm}>"

    def lease(self) -> Loaded:
        """The live version; hold it with `with` for as long as the request is under way.

        Raises:
            NotLive: there is none yet.
        """
        if self.live is None:
            raise NotLive(f"{self.reference} is not live: {self.reason}.")
        return self.live

    def swap(self, new: Loaded, probation_seconds: float) -> tuple[Loaded | None, list[Loaded]]:
        """Make `new` live; gives what was live before, and what is to be drained now."""
        old, warm = self.live, self.warm
        self.live = new
        self.warm = old if probation_seconds else None
        self._probation_ends = time.monotonic() + probation_seconds
        self.filled.set()
        retired = [warm] if warm and warm is not new else []
        return old, retired + ([old] if old and not probation_seconds else [])

    def probation_is_over(self) -> bool:
        """Whether the live version has done well for long enough."""
        return time.monotonic() >= self._probation_ends

    def clear(self, reason: str) -> list[Loaded]:
        """Have nothing live; gives what was, to be drained."""
        was = [loaded for loaded in (self.live, self.warm) if loaded]
        self.live = self.warm = None
        self.reason = reason
        return was


class SlotOnDemand(Slot):
    """A slot that is filled when somebody asks for its model."""

    required = False

    def __init__(self, reference: Reference, recorded: int = 0) -> None:
        super().__init__(reference, recorded)
        self.reason = "it is asleep"
        self.used_at = 0.0
        """When it was last asked for, by the monotonic clock."""
        self.wanted = asyncio.Event()
        """Set while somebody waits for it."""
        self._waiting: list[asyncio.Future[None]] = []

    def lease(self) -> Loaded:
        """The live version.

        Raises:
            Asleep: there is none; it can be woken.
        """
        self.used_at = time.monotonic()
        if self.live is None:
            raise Asleep(f"{self.reference} is not live: {self.reason}.", self.awaken)
        return self.live

    async def awaken(self, seconds: float) -> None:
        """Have it filled, and wait for that.

        Raises:
            NotLive: it could not be filled, or not in time.
        """
        if self.live:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self.wanted.set()
        try:
            async with asyncio.timeout(seconds):
                await waiting
        except TimeoutError:
            raise NotLive(f"{self.reference} is not live after {seconds:g} s: {self.reason}.") from None

    def answer(self, reason: str | None) -> None:
        """Tell those who wait that it is filled, or why it could not be."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if each.done():
                continue
            if reason is None:
                each.set_result(None)
            else:
                each.set_exception(NotLive(f"{self.reference} is not live: {reason}."))
