"""Where requests and promotions meet: what is live for one model reference."""

from __future__ import annotations

import asyncio

from serving.errors import NotLive
from serving.reference import Reference
from serving.runtime.loaded import Loaded


class Slot:
    """What is live for one reference; a swap changes what the next request leases, and nothing else."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.live: Loaded | None = None
        self.filled = asyncio.Event()
        """Set once the first version is live."""
        self.reason = "it is being resolved"

    def __repr__(self) -> str:
        return f"<Slot {self.reference} live={self.live}>"

    def lease(self) -> Loaded:
        """The live version; hold it with `with` for as long as the request is under way.

        Raises:
            NotLive: there is none yet.
        """
        if self.live is None:
            raise NotLive(f"{self.reference} is not live: {self.reason}.")
        return self.live

    def swap(self, new: Loaded) -> Loaded | None:
        """Make `new` live; gives the one that was, to be drained."""
        old, self.live = self.live, new
        self.filled.set()
        return old
