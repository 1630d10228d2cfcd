"""The outcomes of versions that are not live: those that are to be written as tags, and the last ones."""

from __future__ import annotations

from datetime import datetime

from serving.registry.tag_changes import Claim, StatusUpdate
from serving.version import Outcome, Version

_MAX_PENDING = 100
_MAX_PUBLISHED = 1000

VersionKey = tuple[str, str | None]


class StatusUpdates:
    """Keeps the last outcome of each version until it is written, and after that to detect repetitions."""

    def __init__(self) -> None:
        self._pending: dict[VersionKey, StatusUpdate] = {}
        self._published: dict[VersionKey, StatusUpdate] = {}

    @property
    def pending(self) -> list[StatusUpdate]:
        """Return the updates that are not written yet, in the order in which they were added."""
        return [*self._pending.values()]

    def repeats(self, version: Version, outcome: Outcome, reason: str) -> bool:
        """Return whether this is the last published outcome of the version."""
        last = self._published.get(_key(version))
        return last is not None and (last.outcome, last.reason) == (outcome, reason)

    def publish(self, update: StatusUpdate) -> None:
        """Add an update, which becomes the last outcome of its version."""
        _put(self._published, update, _MAX_PUBLISHED)
        self.add(update)

    def add(self, update: StatusUpdate) -> None:
        """Add an update to those that are to be written; it replaces an earlier one of its version."""
        _put(self._pending, update, _MAX_PENDING)

    def refusal(self, version: Version) -> StatusUpdate | None:
        """Return the last outcome of a version if it was rejected."""
        last = self._published.get(_key(version))
        return last if last and last.outcome is Outcome.REJECTED else None

    def settle(self, update: StatusUpdate) -> None:
        """Remove an update that is written, unless a later one has replaced it."""
        key = _key(update.version)
        if self._pending.get(key) is update:
            del self._pending[key]

    def withdraw(self, version: Version) -> str:
        """Forget the outcome of a version that goes live; return the reason if it was rejected before."""
        refusal = self.refusal(version)
        self._pending.pop(_key(version), None)
        self._published.pop(_key(version), None)
        return refusal.reason if refusal else ""

    def for_predecessor(self, old: Version, new: Version, held: datetime) -> StatusUpdate:
        """Return the outcome for a version from which another takes its last reference.

        The last published one states more, for example that the version is in the stage too: it may have been
        skipped, because the version still had the reference.
        """
        pending, last = self._pending.get(_key(old)), self._published.get(_key(old))
        if pending and pending.outcome is Outcome.REVERTED:
            return pending
        reason = last.reason if last and last.outcome is Outcome.SUPERSEDED else f"{new} went live"
        since = held.isoformat(timespec="seconds")
        return StatusUpdate(old, Outcome.SUPERSEDED, reason, since)

    def is_reverted(self, version: Version, claim: Claim) -> bool:
        """Return whether a version is or will be tagged as reverted: the claim is written before that tag."""
        published = None if claim.is_written else self._published.get(_key(version))
        return Outcome.REVERTED in (version.tags.get("serving.state"), published and published.outcome)


def _key(version: Version) -> VersionKey:
    return version.name, version.version


def _put(updates: dict[VersionKey, StatusUpdate], update: StatusUpdate, max_size: int) -> None:
    """Put an update last; drop the oldest if there are too many."""
    key = _key(update.version)
    updates.pop(key, None)
    updates[key] = update
    if len(updates) > max_size:
        updates.pop(next(iter(updates)))
