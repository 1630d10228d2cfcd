"""Where requests and promotions meet: what is live for one model reference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serving.contract.contract import Contract
from serving.errors import NotLive, NotLoaded, Overloaded
from serving.models.loaded_model import LoadedModel
from serving.models.replay import RequestRecorder
from serving.reference import Reference
from serving.version import Version

RECOVERING = "none of its processes is up; they are being restarted"


@dataclass(frozen=True, slots=True)
class LastLive:
    """The version that went live last, and the contract by which clients know the model since."""

    version: Version
    contract: Contract


class Slot:
    """What is live for one reference; a swap changes what the next request leases, and nothing else.

    The version that was live before stays `warm` while the new one is on probation. Where it is `required`,
    the service is not ready without it.
    """

    def __init__(self, reference: Reference, recorded: int = 0, *, required: bool = True) -> None:
        self.reference, self.required = reference, required
        self.live: LoadedModel | None = None
        self.warm: LoadedModel | None = None
        self.last_live: LastLive | None = None
        """What went live last, whether it is loaded or not."""
        self.recorder = RequestRecorder(recorded)
        self.ready = asyncio.Event()
        """Set once the first version is live."""
        self.is_resolved = True
        """False while the registry says that the reference names nothing; what was live stays so."""
        self.reason = "it is being resolved"
        """Why nothing is live, where nothing is."""
        self.warnings: tuple[str, ...] = ()
        """What a person should look at, though a version is live."""
        self._probation_ends = 0.0

    def __repr__(self) -> str:
        return f"<Slot {self.reference} live={self.live} warm={self.warm}>"

    @property
    def state(self) -> str:
        """Where it stands, in a word or two."""
        return "live" if self.is_serving else "recovering" if self.live else "not live"

    @property
    def is_serving(self) -> bool:
        """Whether a version is live, and one of its processes is up."""
        return self.live is not None and self.live.has_process

    def lease(self) -> LoadedModel:
        """The live version; hold it with `with` for as long as the request is under way.

        Raises:
            NotLive: there is none yet.
        """
        if self.live is None:
            raise NotLive(f"{self.reference} is not live: {self.reason}.", f"{self.reference} is not live.")
        return self.live

    def check_serving(self) -> LoadedModel:
        """Return the live version, for probes.

        Raises:
            NotLive: there is none, or none of its processes is up.
        """
        live = self.lease()
        if not live.has_process:
            raise NotLive(f"{self.reference} is not live: {RECOVERING}.")
        return live

    @property
    def in_logs(self) -> dict[str, str | None]:
        """As lines of the log tell it."""
        told = self.live.version.in_logs if self.live else {"model": self.reference.name}
        return {"reference": self.reference.uri, **told}

    def swap(self, new: LoadedModel, probation_seconds: float) -> list[LoadedModel]:
        """Make `new` live; gives what is to be drained now."""
        old, warm = self.live, self.warm
        self.live, self.last_live = new, LastLive(new.version, new.contract)
        self.recorder = new.recorder
        self.warm = old if probation_seconds else None
        self._probation_ends = time.monotonic() + probation_seconds
        self.ready.set()
        retired = [warm] if warm and warm is not new else []
        return retired + ([old] if old and not probation_seconds else [])

    def release_warm(self) -> LoadedModel | None:
        """Give up the version that was live before; return it, to be drained."""
        warm, self.warm = self.warm, None
        return warm

    def set_resolved(self, is_resolved: bool) -> None:
        """Record whether the reference names a version at present."""
        self.is_resolved = is_resolved

    def set_reason(self, reason: str) -> None:
        """Record why nothing is live, or why the promoted version is not."""
        self.reason = reason

    def set_warnings(self, *warnings: str) -> None:
        """Replace the warnings about the live version."""
        self.warnings = warnings

    def probation_is_over(self) -> bool:
        """Whether the live version has done well for long enough."""
        return time.monotonic() >= self._probation_ends

    def clear(self, reason: str) -> list[LoadedModel]:
        """Have nothing live; gives what was, to be drained."""
        was = [loaded for loaded in (self.live, self.warm) if loaded]
        self.live = self.warm = None
        self.reason, self.warnings = reason, ()
        return was


class SlotOnDemand(Slot):
    """A slot that is filled when somebody asks for its model; at most so many wait for that."""

    def __init__(self, reference: Reference, recorded: int, most_waiting: int) -> None:
        super().__init__(reference, recorded, required=False)
        self.reason = "it is asleep"
        self.filled_at = 0.0
        """When it was filled last, by the monotonic clock."""
        self.wanted = asyncio.Event()
        """Set while somebody waits for it."""
        self._most_waiting, self._waiting = most_waiting, 0
        self._outcome: asyncio.Future[str | None] | None = None

    @property
    def state(self) -> str:
        """Where it stands, in a word or two."""
        return super().state if self.live else "waking" if self._outcome else "asleep"

    @property
    def is_held(self) -> bool:
        """Whether a request is under way on it, or about to be."""
        return self._waiting > 0 or any(loaded.in_use for loaded in (self.live, self.warm) if loaded)

    @property
    def used_at(self) -> float:
        """When the last request to it was over, or it was filled, by the monotonic clock."""
        return max([self.filled_at, *(loaded.used_at for loaded in (self.live, self.warm) if loaded)])

    def lease(self) -> LoadedModel:
        """The live version.

        Raises:
            Asleep: there is none; it can be woken.
        """
        if self.live is None:
            raise NotLoaded(
                f"{self.reference} is not live: {self.reason}.",
                f"{self.reference} is not live.",
                self.awaken,
            )
        return self.live

    @asynccontextmanager
    async def awaken(self, seconds: float) -> AsyncIterator[None]:
        """Have it filled and wait for that; while the block runs it is held.

        Raises:
            Overloaded: too many wait for it already.
            NotLive: it could not be filled, or not in time.
        """
        if self._waiting >= self._most_waiting:
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
        """Record that a version was loaded, at a monotonic time, and resume the waiting requests."""
        self.filled_at = now
        self.resolve_waiters(None)

    def resolve_waiters(self, reason: str | None) -> None:
        """Resume the waiting requests. `reason`: why no version is live; None if one is."""
        self.wanted.clear()
        outcome, self._outcome = self._outcome, None
        if outcome:
            outcome.set_result(reason)
