"""Counts the requests that hold a loaded version, so that it is closed only after the last of them."""

from __future__ import annotations

import asyncio
import time
from typing import Self


class Leases:
    """An object that requests hold with `with`."""

    def __init__(self) -> None:
        self._leases, self._released = 0, asyncio.Event()
        self.used_at = 0.0
        """Monotonic time at which the last request ended."""

    def __enter__(self) -> Self:
        self._leases += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._leases -= 1
        if not self._leases:
            self.used_at = time.monotonic()
            self._released.set()

    @property
    def in_use(self) -> bool:
        """Whether a request holds it."""
        return self._leases > 0

    async def wait_until_released(self, seconds: float) -> int:
        """Wait until no request holds it, at most for this time; return how many requests still do."""
        try:
            async with asyncio.timeout(seconds):
                while self._leases:
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            pass
        return self._leases
