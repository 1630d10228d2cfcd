"""Tells in the registry what became of a version, by tags that the MLflow UI shows to who promoted it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.errors import RegistryError, Unresolved
from serving.registry.client import RegistryClient
from serving.runtime.version import Outcome, Version

log = logging.getLogger("serving.herald")
_MOST_PENDING = 100
_MOST_TOLD = 1000


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told of a version."""

    version: Version
    outcome: Outcome
    reason: str
    since: str


class Herald:
    """Writes notices as tags; what the registry does not take is tried again, and is never fatal."""

    def __init__(self, registry: RegistryClient) -> None:
        self._registry = registry
        self._pending: dict[tuple[str, str | None], Notice] = {}
        self._live: dict[str, tuple[str, str | None]] = {}
        self._notes: dict[tuple[str, str | None, str], tuple[Version, str]] = {}
        self._told: dict[tuple[str, str | None], tuple[Outcome, str]] = {}
        self._flushing = asyncio.Lock()
        self._failing = False

    def tell(self, reference: str, version: Version, outcome: Outcome, reason: str) -> None:
        """Have a version's tags say what became of it as `reference`; a later notice replaces an earlier one.

        While it is live as another reference, nothing supersedes it.
        """
        key = (version.name, version.version)
        if outcome is Outcome.LIVE:
            self._live[reference] = key
        elsewhere = [live for other, live in self._live.items() if other != reference]
        if outcome is Outcome.SUPERSEDED and key in elsewhere:
            return
        if version.version is None or self._told.get(key) == (outcome, reason):
            return
        self._told.pop(key, None)
        self._told[key] = (outcome, reason)
        if len(self._told) > _MOST_TOLD:
            self._told.pop(next(iter(self._told)))
        self._pending.pop(key, None)
        self._pending[key] = Notice(version, outcome, reason, now())
        if len(self._pending) > _MOST_PENDING:
            self._pending.pop(next(iter(self._pending)))

    def note(self, version: Version, tag: str, text: str) -> None:
        """Have a version carry a tag of ours that says how it does; a later one replaces an earlier one."""
        if version.version is not None:
            self._notes[version.name, version.version, tag] = version, text[:500]
            if len(self._notes) > _MOST_PENDING:
                self._notes.pop(next(iter(self._notes)))

    async def flush(self) -> None:
        """Write what is pending, as far as the registry takes it; nothing if that is under way already."""
        if not self._flushing.locked():
            async with self._flushing:
                await self._flush()

    async def _flush(self) -> None:
        for key, notice in list(self._pending.items()):
            if not await self._write(notice.version, _tags(notice)):
                return
            if self._pending.get(key) is notice:
                del self._pending[key]
        for place, noted in list(self._notes.items()):
            if not await self._write(noted[0], {place[2]: noted[1]}):
                return
            if self._notes.get(place) is noted:
                del self._notes[place]

    async def _write(self, version: Version, tags: Mapping[str, str]) -> bool:
        """Whether that is done with, as the registry took it or the version has gone."""
        try:
            await self._registry.write_tags(version, tags)
        except Unresolved:
            log.info("%s has gone from the registry, and its tags with it", version, extra=version.in_logs)
        except RegistryError as error:
            if not self._failing:
                said = "the tags of %s could not be written: %s"
                log.warning(said, version, error, extra=version.in_logs)
            self._failing = True
            return False
        self._failing = False
        return True


def now() -> str:
    """This moment in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _tags(notice: Notice) -> dict[str, str]:
    return {  # the state last: who sees it finds its reason
        "serving.reason": notice.reason[:500],
        "serving.since": notice.since,
        "serving.state": notice.outcome.value,
    }
