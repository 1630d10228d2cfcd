"""The history of a reference: which versions were live, rejected or reverted, when and why, kept on disk."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from serving.registry.artifact_store import atomic_write
from serving.version import Outcome

_MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """An outcome for a version, at a time in ISO 8601, UTC."""

    version: str | None
    outcome: Outcome
    at: str
    reason: str = ""


_EVENT = TypeAdapter(Event)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An event with its end; `until` is None while the version is live."""

    version: str | None
    state: Outcome
    since: str
    until: str | None
    reason: str


class History:
    """The last thousand events of one reference; kept in memory only if the disk cannot be written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writing = asyncio.Lock()
        self._events: deque[Event] = deque(_read(file), maxlen=_MAX_EVENTS)
        self.outcomes: Counter[Outcome] = Counter()
        """The number of events of each outcome in this process."""

    async def add(self, event: Event) -> None:
        """Record an event, unless it repeats the last one, as it does after a restart."""
        self.outcomes[event.outcome] += 1
        if self._is_repeated(event):
            return
        self._events.append(event)
        async with self._writing:  # in order, so that the last write is the complete one
            with suppress(OSError):
                await asyncio.to_thread(_write, self._file, tuple(self._events))

    def _is_repeated(self, event: Event) -> bool:
        if event.outcome is Outcome.LIVE:  # regardless of later refusals and of the comparison in its reason
            live = [earlier.version for earlier in self._events if earlier.outcome is Outcome.LIVE]
            return live[-1:] == [event.version]
        last = self._events[-1] if self._events else None
        return last is not None and replace(event, at="") == replace(last, at="")

    def periods(self, limit: int = _MAX_EVENTS) -> list[HistoryEntry]:
        """Return the last events with their ends, the newest first."""
        return with_ends(tuple(self._events)[-limit:])


def with_ends(events: Sequence[Event]) -> list[HistoryEntry]:
    """Return events with their ends, the newest first: a version is live until the next one goes live."""
    entries: list[HistoryEntry] = []
    next_live: str | None = None
    for event in reversed(events):
        until = next_live if event.outcome is Outcome.LIVE else event.at
        entries.append(HistoryEntry(event.version, event.outcome, event.at, until, event.reason))
        if event.outcome is Outcome.LIVE:
            next_live = event.at
    return entries


def _read(file: Path) -> list[Event]:
    events = []
    with suppress(OSError):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError):  # a line that was cut off when the disk was full, or is damaged
                events.append(_EVENT.validate_json(line))
    return events


def _write(file: Path, events: Sequence[Event]) -> None:
    atomic_write(file, "".join(json.dumps(asdict(event)) + "\n" for event in events))
