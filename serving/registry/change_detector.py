"""Decides whether a full poll of the registry is due, by one cheap query that followers share."""

from __future__ import annotations

import asyncio
import random

from serving.errors import RegistryError
from serving.reference import Reference, ReferenceKind
from serving.registry.client import RegistryClient, RegistryCursor

# The cursor does not show every change (a tag, a write by a server whose clock is behind). A full poll after
# this time, or after ten intervals, shows the rest.
_MAX_SECONDS_WITHOUT_POLL = 10.0


class ChangeDetector:
    """Detects for one reference whether the version that it names may have changed since the last poll.

    Args:
        registry: where the versions are.
        reference: the reference.
        shared: query whether any version changed, together with the others; otherwise every poll is due.
    """

    def __init__(self, registry: RegistryClient, reference: Reference, *, shared: bool) -> None:
        self._registry, self._name = registry, reference.name
        self._shared = shared and reference.kind in (ReferenceKind.STAGE, ReferenceKind.LATEST)
        self._cursor: RegistryCursor | None = None
        self._due = 0.0

    async def has_changed(self, poll: float) -> bool:
        """Return whether a full poll is due; called every `poll` seconds, from data up to half as old."""
        if not self._shared:
            return True
        try:
            cursor = await self._registry.cursor(poll / 2)
        except RegistryError:
            return True  # the full poll reports what is wrong
        now, before, self._cursor = asyncio.get_running_loop().time(), self._cursor, cursor
        if now < self._due and not may_affect(self._name, cursor, before):
            return False
        seconds = max(_MAX_SECONDS_WITHOUT_POLL, 10 * poll)
        self._due = now + seconds * random.uniform(0.8, 1.2)  # noqa: S311 — no secret
        return True

    def reset(self) -> None:
        """Make the next poll due, regardless of the cursor."""
        self._cursor = None


def may_affect(name: str, cursor: RegistryCursor, before: RegistryCursor | None) -> bool:
    """Return whether versions of the model may have changed since the cursor was `before`.

    Changed versions come first in a cursor: as long as it shows any entry of `before`, none was missed.
    """
    if cursor == before:
        return False
    if not before or not {*cursor} & {*before}:
        return True
    # Entries that were pushed out at the end have not changed.
    oldest = cursor[-1][2] if len(cursor) >= len(before) else 0
    return any(changed == name and at >= oldest for changed, _, at in {*cursor} ^ {*before})
