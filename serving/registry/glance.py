"""Whether a look at the registry is worth its cost: followers of many models ask together, once."""

from __future__ import annotations

import asyncio
import random

from serving.errors import RegistryError
from serving.reference import Kind, Reference
from serving.registry.client import Marker, RegistryClient

# What a marker does not tell (a tag, a server whose clock is behind) is seen by then.
_SECONDS_BETWEEN_LOOKS = 10.0


class Glance:
    """Says of one reference whether what it names may have changed since the last look.

    Args:
        shared: ask whether any version changed, together with the others; otherwise a look is always due.
    """

    def __init__(self, registry: RegistryClient, reference: Reference, *, shared: bool) -> None:
        self._registry = registry
        self._shared = shared and reference.kind in (Kind.STAGE, Kind.LATEST)
        self._marker: Marker | None = None
        self._due = 0.0

    async def shows_change(self, max_age: float) -> bool:
        """Whether a look is due; what it goes by may be `max_age` seconds old."""
        if not self._shared:
            return True
        try:
            marker = await self._registry.marker(max_age)
        except RegistryError:
            return True  # the look says what is wrong
        now = asyncio.get_running_loop().time()
        if marker == self._marker and now < self._due:
            return False
        self._marker, self._due = marker, now + _SECONDS_BETWEEN_LOOKS * random.uniform(0.8, 1.2)  # noqa: S311
        return True

    def forget(self) -> None:
        """Have a look be due, whatever the registry shows."""
        self._marker = None
