"""What a slot begins with that has nothing live, where what is promoted can't serve or was refused before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import InvalidReference, ProcessDied, RegistryError, Rejected
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.decisions import Candidate, CandidatePhase
from serving.registry.gate import Gate
from serving.registry.live_tag import latest
from serving.version import Version

log = logging.getLogger("serving.last_good")


class Fallback:
    """Brings up what served a reference last: on other fronts, as its tags tell, or here, as the disk has it.

    Whether a version may go live depends on the one before it, whose contract it must not break. A front
    that began with what the registry names now might take a version that all others have refused.
    """

    def __init__(self, slot: Slot, registry: RegistryClient, store: ArtifactStore, gate: Gate) -> None:
        self._slot, self._registry, self._store, self._gate = slot, registry, store, gate

    async def bring_up(self, but: Version) -> LoadedModel | None:
        """What served last, other than `but`; None if there is nothing that can."""
        return await self._told(but) or await self.from_disk(but)

    async def suspected(self, found: Version) -> Candidate | None:
        """Return a version as one that waits for another, if a front died while it verified this one."""
        if await self._gate.deaths(found):
            return Candidate(
                found, CandidatePhase.WAITING, f"{found} waits: the front died while it was being verified"
            )
        return None

    async def from_disk(self, but: Version | None = None) -> LoadedModel | None:
        """What went live last on this disk, other than `but`, proven without the registry."""
        kept = await self._store.load_last_live(self._slot.reference.uri)
        if kept and not (but and kept[0].identity == but.identity):
            with self._warned(f"the copy on disk of {kept[0]} can't serve"):
                return await self._gate.verify(*kept, self._slot)
        return None

    async def by_number(self, number: str) -> LoadedModel | None:
        """The version with this number, which is live on other replicas."""
        with self._warned(f"can't begin with version {number}"):
            reference = Reference.parse(f"models:/{self._slot.reference.name}/{number}")
            found, _ = await self._registry.resolve(reference)
            return await self._gate.load_and_verify(found, self._slot)
        return None

    async def _told(self, but: Version) -> LoadedModel | None:
        with self._warned("what is live on other fronts can't serve here"):
            reference = self._slot.reference
            versions = await self._registry.versions(reference.name)
            if found := latest([each for each in versions if each.identity != but.identity], reference.uri):
                return await self._gate.load_and_verify(found, self._slot)
        return None

    @contextmanager
    def _warned(self, of_what: str) -> Iterator[None]:
        """Have the log tell why it can't be, where the block fails, and go on."""
        said = f"{self._slot.reference}: {of_what}"
        try:
            yield
        except (InvalidReference, RegistryError, Rejected, ProcessDied) as error:
            log.warning("%s: %s", said, error, extra=self._slot.in_logs)
        except Exception:  # a mistake in here must not keep what is promoted from being tried
            log.exception("%s", said, extra=self._slot.in_logs)
