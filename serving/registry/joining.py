"""Follows a reference beside replicas that have followed it for longer."""

from __future__ import annotations

import logging

from serving.errors import InvalidReference, ProcessDied, RegistryError, Rejected
from serving.reference import Reference
from serving.registry.follower import Follower

log = logging.getLogger("serving.joining")


class Joining(Follower):
    """A follower that begins with what other replicas have live.

    Whether a version may go live depends on the one before it, whose contract it must not break. A replica
    that began with what the registry names now might take a version that all others have refused.
    """

    async def begin(self, version: str) -> None:
        """Bring up the version with this number as far as that is possible, and go on from there."""
        name = self.slot.reference.name
        try:
            found, _ = await self._registry.resolve(Reference.parse(f"models:/{name}/{version}"))
            loaded = await self._gate.bring_up(found, self.slot)
        except (InvalidReference, RegistryError, Rejected, ProcessDied) as error:
            log.warning("%s can't begin with version %s: %s", self.slot.reference, version, error)
        else:
            self._swap(loaded, "it is live on other replicas")
