"""Where requests and promotions meet: what is live for one model reference."""

from __future__ import annotations

import asyncio
import time

from serving.errors import NotLive
from serving.reference import Reference
from serving.runtime.loaded import Loaded
from serving.runtime.replay import Recorder


class Slot:
    """What is live for one reference; a swap changes what the next request leases, and nothing else.

    The version that was live before stays `warm` while the new one is on probation.
    """

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

    def clear(self) -> list[Loaded]:
        """Have nothing live; gives what was, to be drained."""
        was = [loaded for loaded in (self.live, self.warm) if loaded]
        self.live = self.warm = None
        self.reason = "the service is stopping"
        return was
