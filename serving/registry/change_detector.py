"""Whether a look at the registry is worth its cost: followers of many models ask together, once."""

from __future__ import annotations

import asyncio
import random

from serving.errors import RegistryError
from serving.reference import Reference, ReferenceKind
from serving.registry.client import RegistryClient, RegistryCursor

# What a marker does not tell (a tag, a server whose clock is behind) is seen by then, or after ten polls.
_SECONDS_BETWEEN_LOOKS = 10.0


class ChangeDetector:
    """Says of one reference whether what it names may have changed since the last look.

    Args:
        shared: ask whether any version changed, together with the others; otherwise a look is always due.
    """

    def __init__(self, registry: RegistryClient, reference: Reference, *, shared: bool) -> None:
        self._registry, self._name = registry, reference.name
        self._shared = shared and reference.kind in (ReferenceKind.STAGE, ReferenceKind.LATEST)
        self._marker: RegistryCursor | None = None
        self._due = 0.0

    async def has_changed(self, poll: float) -> bool:
        """Whether a look is due, asked every `poll` seconds; what it goes by may be half as old."""
        if not self._shared:
            return True
        try:
            marker = await self._registry.cursor(poll / 2)
        except RegistryError:
            return True  # the look says what is wrong
        now, before, self._marker = asyncio.get_running_loop().time(), self._marker, marker
        if now < self._due and not may_affect(self._name, marker, before):
            return False
        between = max(_SECONDS_BETWEEN_LOOKS, 10 * poll)
        self._due = now + between * random.uniform(0.8, 1.2)  # noqa: S311 — no secret
        return True

    def forget(self) -> None:
        """Have a look be due, whatever the registry shows."""
        self._marker = None


def may_affect(name: str, marker: RegistryCursor, before: RegistryCursor | None) -> bool:
    """Whether versions of the model may have changed since the marker was `before`.

    What changed stands before what did not: as long as anything of `before` is seen, nothing is missed.
    """
    if marker == before:
        return False
    if not before or not {*marker} & {*before}:
        return True
    # Those that were pushed out at the end have not changed.
    oldest = marker[-1][2] if len(marker) >= len(before) else 0
    return any(changed == name and at >= oldest for changed, _, at in {*marker} ^ {*before})
