"""A slot whose model is loaded when a request needs it and evicted when it is idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.errors import NotLive, NotLoaded, Overloaded
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.reference import Reference


class SlotOnDemand(Slot):
    """A slot whose model is loaded on request; at most `max_waiting` requests wait for that."""

    def __init__(self, reference: Reference, recorded: int, max_waiting: int) -> None:
        super().__init__(reference, recorded, required=False)
        self.reason = "it is asleep"
        self.filled_at = 0.0
        """Monotonic time of the last load."""
        self.wanted = asyncio.Event()
        """Set while requests wait for the model to be loaded."""
        self._max_waiting, self._waiting = max_waiting, 0
        self._outcome: asyncio.Future[str | None] | None = None

    @property
    def state(self) -> str:
        """The state, for `/ready`."""
        return super().state if self.live else "waking" if self._outcome else "asleep"

    @property
    def in_use(self) -> bool:
        """Whether a request is in progress or waits for the model to be loaded."""
        return self._waiting > 0 or any(loaded.in_use for loaded in (self.live, self.warm) if loaded)

    @property
    def used_at(self) -> float:
        """Monotonic time at which the last request ended or the model was loaded."""
        return max([self.filled_at, *(loaded.used_at for loaded in (self.live, self.warm) if loaded)])

    def lease(self) -> LoadedModel:
        """Return the live version.

        Raises:
            NotLoaded: the model is not loaded; `ensure_loaded` loads it.
        """
        if self.live is None:
            raise NotLoaded(
                f"{self.reference} is not live: {self.reason}.",
                f"{self.reference} is not live.",
                self.reference.uri,
            )
        return self.live

    @asynccontextmanager
    async def ensure_loaded(self, seconds: float) -> AsyncIterator[None]:
        """Wait at most `seconds` for the model to be loaded, and prevent its eviction within the block.

        Raises:
            Overloaded: too many requests wait for it already.
            NotLive: loading failed or took too long.
        """
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"Too many requests wait for {self.reference} to be loaded.")
        self._waiting += 1
        try:
            if self.live is None:
                await self._wait(seconds)
            yield
        finally:
            self._waiting -= 1

    async def _wait(self, seconds: float) -> None:
        self._outcome = outcome = self._outcome or asyncio.get_running_loop().create_future()
        self.wanted.set()
        await asyncio.wait([outcome], timeout=seconds)
        if not outcome.done():
            raise NotLive(
                f"{self.reference} is not live in time: {self.reason}.",
                f"{self.reference} is not live in time.",
            )
        if reason := outcome.result():
            raise NotLive(f"{self.reference} is not live: {reason}.", f"{self.reference} is not live.")

    def mark_loaded(self, now: float) -> None:
        """Record that a version was loaded, at a monotonic time, and release the requests that wait."""
        self.filled_at = now
        self.resolve_waiters(None)

    def resolve_waiters(self, failure: str | None) -> None:
        """Release the requests that wait: the model is loaded (None), or the load failed."""
        self.wanted.clear()
        outcome, self._outcome = self._outcome, None
        if outcome:
            outcome.set_result(failure)
