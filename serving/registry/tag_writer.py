"""Writes the outcomes of promotions as tags of the model versions, which the MLflow UI shows.

Several fronts report on the same version. The tags show how far it came on any of them: a version that is
live on one front is not shown as rejected because another cannot load it.

`serving.live` shows which version is live for a reference (see `live_tag`). The version that goes live gets
the reference first, and the others lose it afterwards, so that some version carries it at every moment. Both
writes are repeated until the registry accepts them, and whenever a poll shows that the tags are wrong.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from serving.errors import ReferenceNotFound, RegistryError
from serving.reference import Reference, ReferenceKind
from serving.registry.client import RegistryClient, TagChange
from serving.registry.live_tag import held_since, moment, references
from serving.registry.status_updates import StatusUpdates
from serving.registry.tag_changes import (
    Claim,
    StatusUpdate,
    hides_refusals,
    is_reverted_elsewhere,
    live,
    merged_tag,
    not_live,
    outcome,
)
from serving.registry.tag_failures import TagFailures
from serving.version import Outcome, Version

log = logging.getLogger("serving.tag_writer")
_MAX_PENDING = 100
_POLLED_WITH_TAGS = (ReferenceKind.STAGE, ReferenceKind.LATEST)
"""A poll of one of these returns all versions of the model, with their tags."""
_CHECK_INTERVAL_SECONDS = 60.0
"""How often tags are checked for other references, and while the live version is not the one named."""


@dataclass(frozen=True, slots=True, eq=False)
class TagUpdate:
    """A tag to write on a version, and a callback that runs once the registry has it."""

    version: Version
    change: TagChange
    done: Callable[[], None]


class TagWriter:
    """Writes status updates as tags; failed writes are repeated, and are never fatal.

    Args:
        registry: where the tags are written.
        spread: maximum delay of an update in seconds, chosen at random. If several fronts have the same
            update at the same moment, one of them writes it, and the others see that it is written.
    """

    def __init__(self, registry: RegistryClient, spread: float = 0.0) -> None:
        self._registry, self._spread = registry, spread
        self._updates = StatusUpdates()
        self._claims: dict[str, Claim] = {}
        self._unwritten: dict[str, None] = {}
        self._checks: dict[str, float] = {}
        self._due = 0.0
        self._tag_updates: dict[tuple[str, str, str], TagUpdate] = {}
        self._flushing = asyncio.Lock()
        self._failing = False
        self.failures = TagFailures(lambda: registry.reachable)

    def _can_tag(self, version: Version) -> bool:
        return version.version is not None and self._registry.has_tags

    def live(self, reference: str, version: Version, reason: str, *, stands_in: bool = False) -> None:
        """Record that a version is live under `reference`, and that no other version is.

        A version that only `stands_in` takes the reference from no version that is live on other fronts.
        """
        if not self._can_tag(version):
            return
        refusal = self._updates.withdraw(version)
        self._claims[reference] = Claim(version, reason, None if stands_in else moment(), refusal)
        self._schedule()
        self._unwritten[reference] = None

    def mark_unloaded(self, reference: str) -> None:
        """Keep the tags as they are, although the version that is live under `reference` is unloaded."""
        if claim := self._claims.get(reference):
            self._claims[reference] = replace(claim, is_loaded=False)
            self._checks.pop(reference, None)

    def publish(self, version: Version, outcome: Outcome, reason: str) -> None:
        """Record the outcome for a version that is not live; a later update replaces an earlier one.

        A version that is live under any reference, according to its tags, is not superseded.
        """
        if self._can_tag(version) and not self._updates.repeats(version, outcome, reason):
            self._schedule()
            self._updates.publish(StatusUpdate(version, outcome, reason, now()))

    def reassert(self, reference: str, resolved: Version) -> None:
        """Write again that a version is live under `reference`, if the tags in the registry differ.

        Fronts that write at the same moment undo each other's writes, and a front that is killed leaves its
        writes incomplete; this repairs both. `resolved` is the version that the reference names, and is live.
        """
        claim, state = self._claims.get(reference), resolved.tags.get("serving.state")
        if claim is None or claim.version.identity != resolved.identity or state == Outcome.REVERTED:
            return
        contested = reference in self._registry.contested.get(resolved.name, ())
        if contested or state != Outcome.LIVE or reference not in references(resolved.tags):
            self._schedule()
            self._unwritten[reference] = None

    def repeat_refusal(self, resolved: Version) -> None:
        """Write again why this front rejected a version, if the tags show it live on all fronts.

        Another front that takes longer to load the version overwrites the first refusal.
        """
        refusal = self._updates.refusal(resolved)
        if refusal and hides_refusals(resolved.tags):
            self._schedule()
            self._updates.add(refusal)

    def _schedule(self) -> None:
        """Set the time of the next write, unless one is scheduled."""
        if not self._updates.pending and not self._unwritten:
            self._due = time.monotonic() + random.uniform(0, self._spread)  # noqa: S311 — no secret

    def set_tag(
        self, version: Version, tag: str, merge: Callable[[str], str], done: Callable[[], None] = lambda: None
    ) -> None:
        """Write one of the front's own tags; a later update of the same tag replaces an earlier one.

        Args:
            version: the version to tag.
            tag: the name of the tag.
            merge: returns the value to write for the present one, which another front may have written
                ("" if there is none).
            done: called once the registry has the value, unless a later update has replaced this one.
        """
        self.set_tags(version, tag, partial(merged_tag, tag, merge), done)

    def set_tags(
        self, version: Version, name: str, update: TagChange, done: Callable[[], None] = lambda: None
    ) -> None:
        """Write the tags that `update` returns; a later update with the same `name` replaces an earlier one.

        Args:
            version: The version that carries the tags.
            name: The name of the update.
            update: Returns the tags to write, in this order, for the present ones.
            done: Is called once the registry has the tags, unless a later update has replaced this one.
        """
        if version.version is not None and self._can_tag(version):
            self._tag_updates[version.name, version.version, name] = TagUpdate(version, update, done)
            if len(self._tag_updates) > _MAX_PENDING:
                self._tag_updates.pop(next(iter(self._tag_updates)))

    @property
    def is_due(self) -> bool:
        """Return whether there is something to write, and the last write succeeded."""
        waits = bool(self._updates.pending or self._unwritten)
        return not self._failing and waits and self._due <= time.monotonic()

    async def flush(self) -> None:
        """Write what is pending, until a write fails; do nothing if a flush is under way."""
        if not self._flushing.locked():
            async with self._flushing:
                await self._flush()

    async def _flush(self) -> None:
        for reference in [uri for uri, at in self._checks.items() if at <= time.monotonic()]:
            self._unwritten[reference] = None
        if self._due <= time.monotonic():
            for reference in list(self._unwritten):
                claim = self._claims[reference]
                if not await self._write_claim(reference, claim) and self.failures.blocks(claim.version):
                    return
            for update in self._updates.pending:
                is_written = await self._try(
                    update.version, self._registry.write_tags, update.version, partial(outcome, update)
                )
                if not is_written and self.failures.blocks(update.version):
                    return
                if is_written:
                    self._updates.settle(update)
        for tag_key, tag_update in list(self._tag_updates.items()):
            version = tag_update.version
            is_written = await self._try(version, self._registry.write_tags, version, tag_update.change)
            if not is_written and self.failures.blocks(version):
                return
            if is_written and self._tag_updates.get(tag_key) is tag_update:
                del self._tag_updates[tag_key]
                tag_update.done()

    async def _try(self, version: Version, write: Callable[..., Awaitable[None]], *args: Any) -> bool:
        """Return whether the write is settled: the registry accepted it, or the version no longer exists."""
        if self.failures.is_paused(version.name):
            return False
        try:
            await write(*args)
        except ReferenceNotFound:
            log.info("%s was deleted from the registry, with its tags", version, extra=version.in_logs)
        except RegistryError as error:
            self.failures.record(version, error)
            self._failing = self.failures.blocks(version)
            return False
        self._failing = False
        self.failures.clear(version)
        return True

    # -- the live version

    async def _write_claim(self, uri: str, claim: Claim) -> bool:
        """Write a claim, and return whether it is settled; a claim that replaced it meanwhile is not."""
        if not await self._try(claim.version, self._claim, uri, claim):
            return False
        if (current := self._claims[uri]).version is claim.version:
            self._claims[uri] = replace(current, is_written=True)
            self._unwritten.pop(uri, None)
        return True

    async def _claim(self, uri: str, claim: Claim) -> None:
        """Write the version's tags, if it holds the reference, and afterwards those of the others."""
        version, reference = claim.version, Reference.parse(uri)
        versions = await self._registry.versions(reference.name, version.version)
        named = await self._named(reference, versions)
        self._checks.pop(uri, None)
        if claim.is_loaded and not (reference.kind in _POLLED_WITH_TAGS and named == version.version):
            self._checks[uri] = time.monotonic() + _CHECK_INTERVAL_SECONDS
        present = next((v.tags for v in versions if v.version == version.version), None)
        if present is None or is_reverted_elsewhere(claim, present):
            return
        held = held_since(
            uri,
            version,
            claim.swapped_at,
            versions,
            named=None if named is None or (named == version.version and not claim.is_loaded) else named,
            named_is_reverted=any(
                other.version == named and self._updates.is_reverted(other, claim) for other in versions
            ),
        )
        if held is None:
            return
        update = partial(live, uri, held, claim, max_length=self._registry.max_tag_length)
        if update(present):
            await self._registry.write_tags(version, update)
        for other in versions:
            if other.version != version.version and uri in references(other.tags):
                superseded = self._updates.for_predecessor(other, version, held)
                with suppress(ReferenceNotFound):
                    await self._registry.write_tags(other, partial(not_live, uri, held, superseded))

    async def _named(self, reference: Reference, versions: Sequence[Version]) -> str | None:
        """Return the number of the version that a reference names now; the versions show it for a stage."""
        if reference.kind in _POLLED_WITH_TAGS:
            is_latest = reference.kind is ReferenceKind.LATEST
            numbers = [
                str(version.version)
                for version in versions
                if is_latest or version.stage == reference.selector
            ]
            return max(numbers, key=int, default=None)
        with suppress(ReferenceNotFound):
            return (await self._registry.resolve(reference))[0].version
        return None


def now() -> str:
    """Return the time now in ISO 8601, UTC, to the second."""
    return moment().isoformat(timespec="seconds")
