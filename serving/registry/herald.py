"""Tells in the registry what became of a version, by tags that the MLflow UI shows to who promoted it.

Several fronts tell of the same version. The tags say how far it came with any of them: what is live on one
front, another that can't load it does not call rejected.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from serving.errors import RegistryError, Unresolved
from serving.registry.client import News, RegistryClient
from serving.runtime.version import Outcome, Version, live_as

log = logging.getLogger("serving.herald")
_MOST_PENDING = 100
_MOST_TOLD = 1000
_LONGEST_REASON = 500

Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told of a version, from `due` on; `refusal` is why this front had refused it before."""

    version: Version
    outcome: Outcome
    reason: str
    since: str
    live_as: frozenset[str] = frozenset()
    refusal: str = ""
    due: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Note:
    """A tag that a version is to carry, and who hears of it once it does."""

    version: Version
    told: News
    done: Callable[[], None]


class Herald:
    """Writes notices as tags; what the registry does not take is tried again, and is never fatal.

    Args:
        registry: where they are written.
        spread: seconds of which each notice waits some, at random: of several fronts that have the same to
            tell at the same moment, one then writes it, and the others find it written.
    """

    def __init__(self, registry: RegistryClient, spread: float = 0.0) -> None:
        self._registry, self._spread = registry, spread
        self._pending: dict[Key, Notice] = {}
        self._live: dict[str, Key] = {}
        self._notes: dict[tuple[str, str, str], Note] = {}
        self._told: dict[Key, Notice] = {}
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
        told, uris = self._told.get(key), frozenset(uri for uri, of in self._live.items() if of == key)
        if version.version is None or (
            told and (told.outcome, told.reason, told.live_as) == (outcome, reason, uris)
        ):
            return
        refusal = told.reason if told and told.outcome is Outcome.REJECTED else ""
        due = time.monotonic() + random.uniform(0, self._spread)  # noqa: S311 — no secret
        notice = Notice(version, outcome, reason, now(), uris, refusal, due)
        _keep(self._told, key, notice, _MOST_TOLD)
        _keep(self._pending, key, notice, _MOST_PENDING)

    def remind(self, found: Version) -> None:
        """Tell once more that a version is live, where its tags, as the registry has them now, say otherwise.

        Fronts that write at the same moment undo each other; this makes it good.
        """
        key = (found.name, found.version)
        told, state = self._told.get(key), found.tags.get("serving.state")
        if not told or told.outcome is not Outcome.LIVE or state in (Outcome.LIVE, Outcome.REVERTED):
            return
        if key not in self._pending:
            _keep(self._pending, key, told, _MOST_PENDING)

    def note(
        self, version: Version, tag: str, says: Callable[[str], str], done: Callable[[], None] = lambda: None
    ) -> None:
        """Have a version carry a tag of ours that says how it does; a later note replaces an earlier one.

        `says` is given what the tag says now, maybe as another front has written it, or nothing; `done` is
        called once the registry has it, unless a later note has come.
        """
        if version.version is not None:
            note = Note(version, partial(_noted, tag, says), done)
            self._notes[version.name, version.version, tag] = note
            if len(self._notes) > _MOST_PENDING:
                self._notes.pop(next(iter(self._notes)))

    @property
    def is_due(self) -> bool:
        """Whether there is something to write, and the registry took what was written before."""
        return not self._failing and any(each.due <= time.monotonic() for each in self._pending.values())

    async def flush(self) -> None:
        """Write what is pending, as far as the registry takes it; nothing if that is under way already."""
        if not self._flushing.locked():
            async with self._flushing:
                await self._flush()

    async def _flush(self) -> None:
        due = [each for each in self._pending.items() if each[1].due <= time.monotonic()]
        for key, notice in due:
            if not await self._write(notice.version, partial(news, notice)):
                return
            if self._pending.get(key) is notice:
                del self._pending[key]
        for place, note in list(self._notes.items()):
            if not await self._write(note.version, note.told):
                return
            if self._notes.get(place) is note:
                del self._notes[place]
                note.done()

    async def _write(self, version: Version, told: News) -> bool:
        """Whether that is done with, as the registry took it or the version has gone."""
        try:
            await self._registry.write_tags(version, told)
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


def news(notice: Notice, present: Mapping[str, str]) -> dict[str, str]:
    """The tags to write, in this order, for a version to tell this; `present` are those that it has."""
    state, outcome, reason = present.get("serving.state"), notice.outcome, notice.reason[:_LONGEST_REASON]
    if state == Outcome.LIVE and outcome is Outcome.REJECTED:
        return _if_new({"serving.reason": _not_everywhere(notice.reason)}, present)
    if outcome is Outcome.LIVE and state == Outcome.REVERTED != notice.version.tags.get("serving.state"):
        return {}  # another front has gone back from it while it went live here
    uris = ", ".join(sorted(live_as(present) | notice.live_as))
    names = {"serving.live_as": uris} if outcome is Outcome.LIVE else {}
    if state != outcome or "serving.since" not in present:
        # The state last: who sees it finds its reason.
        return names | {
            "serving.reason": reason,
            "serving.since": notice.since,
            "serving.state": outcome.value,
        }
    if state == Outcome.LIVE and present.get("serving.reason") != _not_everywhere(notice.refusal):
        return _if_new(names, present)  # how it compares differs from front to front, and the first has told
    return _if_new(names | {"serving.reason": reason}, present)


def _noted(tag: str, says: Callable[[str], str], present: Mapping[str, str]) -> dict[str, str]:
    said = present.get(tag, "")
    told = says(said)[:_LONGEST_REASON]
    return {} if told == said else {tag: told}


def _not_everywhere(refusal: str) -> str:
    return f"live, but not on every front: {refusal}"[:_LONGEST_REASON]


def _if_new(tags: dict[str, str], present: Mapping[str, str]) -> dict[str, str]:
    return {tag: value for tag, value in tags.items() if present.get(tag) != value}


def _keep(notices: dict[Key, Notice], key: Key, notice: Notice, most: int) -> None:
    """Put a notice last; the oldest goes where there are too many."""
    notices.pop(key, None)
    notices[key] = notice
    if len(notices) > most:
        notices.pop(next(iter(notices)))
