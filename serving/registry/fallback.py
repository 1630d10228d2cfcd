"""Fallbacks for a slot with nothing live, if the promoted version cannot serve or was refused before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import InvalidReference, ProcessDied, RegistryError
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.promotion_errors import PromotionWaits, Rejected
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.decisions import Candidate, CandidatePhase
from serving.registry.gate import Gate
from serving.registry.live_tag import latest
from serving.version import Version

log = logging.getLogger("serving.fallback")


class Fallback:
    """Loads the version that served a reference last: on other fronts by its tags, or here by the disk.

    Whether a version may go live depends on its predecessor, as it must not break that one's contract.
    Without a predecessor, a front that starts might accept a version that all others have refused.
    """

    def __init__(self, slot: Slot, registry: RegistryClient, store: ArtifactStore, gate: Gate) -> None:
        self._slot, self._registry, self._store, self._gate = slot, registry, store, gate

    async def load(self, failed: Version) -> LoadedModel | None:
        """Load the first candidate other than `failed` that passes the gate; None if none does."""
        return await self.live_elsewhere(failed) or await self.from_disk(failed)

    async def suspected(self, version: Version) -> Candidate | None:
        """Return a version as a candidate that waits, if a front died while it verified this version."""
        if await self._gate.deaths(version):
            reason = f"{version} waits: the front died while it was being verified"
            return Candidate(version, CandidatePhase.WAITING, reason)
        return None

    async def live_elsewhere(self, failed: Version) -> LoadedModel | None:
        """Load the version that went live last on any front, other than `failed`, according to the tags."""
        with self._log_failure("the version that is live on other fronts can't serve here"):
            reference = self._slot.reference
            versions = await self._registry.versions(reference.name)
            others = [version for version in versions if version.identity != failed.identity]
            if version := latest(others, reference.uri):
                return await self._gate.load_and_verify(version, self._slot)
        return None

    async def from_disk(self, failed: Version | None = None) -> LoadedModel | None:
        """Load the version that went live last here, other than `failed`, without the registry."""
        last = await self._store.load_last_live(self._slot.reference.uri)
        if last and not (failed and last[0].identity == failed.identity):
            with self._log_failure(f"the copy on disk of {last[0]} can't serve"):
                return await self._gate.verify(*last, self._slot)
        return None

    async def by_number(self, number: str) -> LoadedModel | None:
        """Load the version with this number, which is live on other instances."""
        with self._log_failure(f"version {number}, which is live on other instances, can't serve here"):
            reference = Reference.parse(f"models:/{self._slot.reference.name}/{number}")
            version, _ = await self._registry.resolve(reference)
            return await self._gate.load_and_verify(version, self._slot)
        return None

    @contextmanager
    def _log_failure(self, message: str) -> Iterator[None]:
        """Log a failure of the block and continue, so that the next candidate is tried."""
        message = f"{self._slot.reference}: {message}"
        try:
            yield
        except (InvalidReference, RegistryError, Rejected, PromotionWaits, ProcessDied) as error:
            log.warning("%s: %s", message, error, extra=self._slot.in_logs)
        except Exception:
            log.exception("%s", message, extra=self._slot.in_logs)
