"""Tries refused versions again once the rules or the labelled rows of their model have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cachetools import LRUCache

from serving.errors import RegistryError
from serving.registry.client import RegistryClient
from serving.registry.decisions import CandidatePhase
from serving.registry.follower import Follower
from serving.registry.promotion_check import Promotion

_POLL_SECONDS = 5.0
_MAX_PROMOTIONS = 1000
_REFUSED = (CandidatePhase.REJECTED, CandidatePhase.WAITING)

Identity = tuple[str, str | None, str]


class RuleWatch:
    """Compares the tags of registered models with those at the last attempt of a version.

    The registry is polled only while a version that has rules is refused.

    Args:
        registry: holds the tags.
        names: the tags that matter.
        followers: try versions again.
    """

    def __init__(self, registry: RegistryClient, names: Sequence[str], followers: Sequence[Follower]) -> None:
        self._registry, self._names, self._followers = registry, names, followers
        self._seen: LRUCache[str, tuple[Identity, list[str | None]]] = LRUCache(_MAX_PROMOTIONS)

    def record(self, promotion: Promotion, tags: Mapping[str, str]) -> None:
        """Store the tags with which a version is tried."""
        self._seen[promotion.slot.reference.uri] = promotion.version.identity, self._values(tags)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self.tick()

    async def tick(self) -> None:
        """Try each refused version again if the tags have changed since its last attempt."""
        for follower in self._followers:
            candidate = follower.candidate
            if candidate is None or candidate.state not in _REFUSED:
                continue
            identity, values = self._seen.get(follower.slot.reference.uri, (None, []))
            if identity != candidate.version.identity:
                continue
            with suppress(RegistryError):
                tags = await self._registry.model_tags(candidate.version.name)
                if self._values(tags) != values and follower.candidate is candidate:
                    follower.retry()

    def _values(self, tags: Mapping[str, str]) -> list[str | None]:
        return [tags.get(name) for name in self._names]
