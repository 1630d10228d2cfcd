"""Tells in the registry what became of a version, by tags that the MLflow UI shows to who promoted it.

Several fronts tell of the same version. The tags say how far it came with any of them: what is live on one
front, another that can't load it does not call rejected.

`serving.live` says which version is live for a reference (see `live_tag`). The version that goes live gets
the reference first, and the others lose it then, so that one carries it at every moment. Both writes are
repeated until the registry takes them, and whenever a look at the registry shows that the tags are wrong.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from serving.errors import ReferenceNotFound, RegistryError
from serving.reference import Reference, ReferenceKind
from serving.registry.client import News, RegistryClient
from serving.registry.live_tag import held_since, moment, references
from serving.registry.tag_changes import (
    MAX_REASON_LENGTH,
    Claim,
    StatusUpdate,
    is_live_everywhere,
    is_reverted_elsewhere,
    live,
    not_live,
    outcome,
)
from serving.version import Outcome, Version

log = logging.getLogger("serving.herald")
_MAX_PENDING = 100
_MAX_PUBLISHED = 1000
_SHOWN = (ReferenceKind.STAGE, ReferenceKind.LATEST)
"""A look at one of these shows all versions of the model, with their tags."""
_SECONDS_BETWEEN_CHECKS = 60.0
"""The tags are checked this often for other references, and where what is live is not what is named."""

Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True, eq=False)
class TagUpdate:
    """A tag that a version is to carry, and who hears of it once it does."""

    version: Version
    told: News
    done: Callable[[], None]


class TagWriter:
    """Writes notices as tags; what the registry does not take is tried again, and is never fatal.

    Args:
        registry: where they are written.
        spread: seconds of which each notice waits some, at random: of several fronts that have the same to
            tell at the same moment, one then writes it, and the others find it written.
    """

    def __init__(self, registry: RegistryClient, spread: float = 0.0) -> None:
        self._registry, self._spread = registry, spread
        self._pending: dict[Key, StatusUpdate] = {}
        self._claims: dict[str, Claim] = {}
        self._unwritten: dict[str, None] = {}
        self._checks: dict[str, float] = {}
        self._due = 0.0
        self._notes: dict[tuple[str, str, str], TagUpdate] = {}
        self._told: dict[Key, StatusUpdate] = {}
        self._flushing = asyncio.Lock()
        self._failing = False

    def live(self, reference: str, version: Version, reason: str, *, stands_in: bool = False) -> None:
        """Record that a version is live under `reference`, and that no other version is.

        A version that only `stands_in` takes the reference from no version that is live on other fronts.
        """
        if version.version is None:
            return
        key = (version.name, version.version)
        self._pending.pop(key, None)
        told = self._told.pop(key, None)
        refusal = told.reason if told and told.outcome is Outcome.REJECTED else ""
        self._claims[reference] = Claim(version, reason, None if stands_in else moment(), refusal)
        self._schedule()
        self._unwritten[reference] = None

    def mark_superseded(self, reference: str) -> None:
        """Keep the tags as they are, though the version that is live under `reference` is unloaded."""
        if claim := self._claims.get(reference):
            self._claims[reference] = replace(claim, is_loaded=False)
            self._checks.pop(reference, None)

    def publish(self, version: Version, outcome: Outcome, reason: str) -> None:
        """Record what became of a version that is not live; a later notice replaces an earlier one.

        A version that is live under any reference, as its tags show, is not superseded.
        """
        key = (version.name, version.version)
        told = self._told.get(key)
        if version.version is None or (told and (told.outcome, told.reason) == (outcome, reason)):
            return
        notice = StatusUpdate(version, outcome, reason, now())
        self._schedule()
        _keep(self._told, key, notice, _MAX_PUBLISHED)
        _keep(self._pending, key, notice, _MAX_PENDING)

    def reassert(self, reference: str, found: Version) -> None:
        """Write again that a version is live under `reference`, if the tags in the registry differ from that.

        Fronts that write at the same moment undo each other's writes, and one that is killed leaves its work
        half done; this repairs both. `found` is the version that the reference names, and that is live.
        """
        claim, state = self._claims.get(reference), found.tags.get("serving.state")
        if claim is None or claim.version.identity != found.identity or state == Outcome.REVERTED:
            return
        contested = reference in self._registry.contested.get(found.name, ())
        if contested or state != Outcome.LIVE or reference not in references(found.tags):
            self._schedule()
            self._unwritten[reference] = None

    def repeat_refusal(self, found: Version) -> None:
        """Write again why this front rejected a version, if the tags show it live on all fronts.

        Another front that takes longer to load the version writes that it is live over the first refusal.
        """
        key = (found.name, found.version)
        refusal = self._told.get(key)
        if refusal and refusal.outcome is Outcome.REJECTED and is_live_everywhere(found.tags):
            self._schedule()
            _keep(self._pending, key, refusal, _MAX_PENDING)

    def _schedule(self) -> None:
        """Set the time of the next write, unless something waits already."""
        if not self._pending and not self._unwritten:
            self._due = time.monotonic() + random.uniform(0, self._spread)  # noqa: S311 — no secret

    def set_tag(
        self, version: Version, tag: str, says: Callable[[str], str], done: Callable[[], None] = lambda: None
    ) -> None:
        """Have a version carry a tag of ours that says how it does; a later note replaces an earlier one.

        `says` is given what the tag says now, maybe as another front has written it, or nothing; `done` is
        called once the registry has it, unless a later note has come.
        """
        self.set_tags(version, tag, partial(_noted, tag, says), done)

    def set_tags(
        self, version: Version, name: str, update: News, done: Callable[[], None] = lambda: None
    ) -> None:
        """Write the tags that `update` returns; a later update with the same `name` replaces an earlier one.

        Args:
            version: The version that carries the tags.
            name: The name of the update.
            update: Returns the tags to write, in this order, for the present ones.
            done: Is called once the registry has the tags, unless a later update has replaced this one.
        """
        if version.version is not None:
            self._notes[version.name, version.version, name] = TagUpdate(version, update, done)
            if len(self._notes) > _MAX_PENDING:
                self._notes.pop(next(iter(self._notes)))

    @property
    def is_due(self) -> bool:
        """Whether there is something to write, and the registry took what was written before."""
        waits = bool(self._pending or self._unwritten)
        return not self._failing and waits and self._due <= time.monotonic()

    async def flush(self) -> None:
        """Write what is pending, as far as the registry takes it; nothing if that is under way already."""
        if not self._flushing.locked():
            async with self._flushing:
                await self._flush()

    async def _flush(self) -> None:
        for reference in [each for each, at in self._checks.items() if at <= time.monotonic()]:
            self._unwritten[reference] = None
        if self._due <= time.monotonic():
            for reference in list(self._unwritten):
                if not await self._write_claim(reference, self._claims[reference]):
                    return
            for key, notice in list(self._pending.items()):
                if not await self._tried(
                    notice.version, self._write(notice.version, partial(outcome, notice))
                ):
                    return
                if self._pending.get(key) is notice:
                    del self._pending[key]
        for place, note in list(self._notes.items()):
            if not await self._tried(note.version, self._write(note.version, note.told)):
                return
            if self._notes.get(place) is note:
                del self._notes[place]
                note.done()

    async def _tried(self, version: Version, writing: Awaitable[None]) -> bool:
        """Whether that is done with, as the registry took it or the version has gone."""
        try:
            await writing
        except ReferenceNotFound:
            log.info("%s has gone from the registry, and its tags with it", version, extra=version.in_logs)
        except RegistryError as error:
            if not self._failing:
                said = "the tags of %s could not be written: %s"
                log.warning(said, version, error, extra=version.in_logs)
            self._failing = True
            return False
        self._failing = False
        return True

    async def _write(self, version: Version, told: News) -> None:
        await self._registry.write_tags(version, told)

    # -- what is live

    async def _write_claim(self, uri: str, claim: Claim) -> bool:
        """Return whether it is written; one that replaced it meanwhile is not."""
        if not await self._tried(claim.version, self._claim(uri, claim)):
            return False
        if (now := self._claims[uri]).version is claim.version:
            self._claims[uri] = replace(now, is_written=True)
            self._unwritten.pop(uri, None)
        return True

    async def _claim(self, uri: str, claim: Claim) -> None:
        """Write the version's tags, if it holds the reference, and then those of the others."""
        version, reference = claim.version, Reference.parse(uri)
        versions = await self._registry.versions(reference.name)
        named = await self._named(reference, versions)
        self._checks.pop(uri, None)
        if claim.is_loaded and not (reference.kind in _SHOWN and named == version.version):
            self._checks[uri] = time.monotonic() + _SECONDS_BETWEEN_CHECKS
        present = next((each.tags for each in versions if each.version == version.version), None)
        if present is None or is_reverted_elsewhere(claim, present):
            return
        held = held_since(
            uri,
            version,
            claim.swapped_at,
            versions,
            named=None if named is None or (named == version.version and not claim.is_loaded) else named,
            named_is_reverted=any(
                each.version == named and self._is_reverted(each, claim) for each in versions
            ),
        )
        if held is None:
            return
        if live(uri, held, claim, present):
            await self._write(version, partial(live, uri, held, claim))
        for other in versions:
            if other.version != version.version and uri in references(other.tags):
                with suppress(ReferenceNotFound):
                    await self._write(other, partial(not_live, uri, held, self._notice(other, version, held)))

    def _notice(self, old: Version, new: Version, held: datetime) -> StatusUpdate:
        """Return what becomes of a version from which another takes its last reference."""
        told = self._pending.get((old.name, old.version))
        if told and told.outcome is Outcome.REVERTED:
            return told
        since = held.isoformat(timespec="seconds")
        return StatusUpdate(old, Outcome.SUPERSEDED, f"{new} went live", since)

    async def _named(self, reference: Reference, versions: Sequence[Version]) -> str | None:
        """Return the number of the version that a reference names now; the versions show it for a stage."""
        if reference.kind in _SHOWN:
            is_latest = reference.kind is ReferenceKind.LATEST
            found = [each for each in versions if is_latest or each.stage == reference.selector]
            return max((str(each.version) for each in found), key=int, default=None)
        with suppress(ReferenceNotFound):
            return (await self._registry.resolve(reference))[0].version
        return None

    def _is_reverted(self, version: Version, claim: Claim) -> bool:
        """Return whether a version stands reverted, or will: the claim is written before that is."""
        told = None if claim.is_written else self._told.get((version.name, version.version))
        return Outcome.REVERTED in (version.tags.get("serving.state"), told and told.outcome)


def now() -> str:
    """This moment in ISO 8601, UTC, to the second."""
    return moment().isoformat(timespec="seconds")


def _noted(tag: str, says: Callable[[str], str], present: Mapping[str, str]) -> dict[str, str | None]:
    said = present.get(tag, "")
    told = says(said)[:MAX_REASON_LENGTH]
    return {} if told == said else {tag: told}


def _keep(notices: dict[Key, StatusUpdate], key: Key, notice: StatusUpdate, most: int) -> None:
    """Put a notice last; the oldest goes where there are too many."""
    notices.pop(key, None)
    notices[key] = notice
    if len(notices) > most:
        notices.pop(next(iter(notices)))
