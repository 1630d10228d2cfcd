"""What was live from when to when, refused or reverted, and why: kept on disk, across restarts."""

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
    """What became of a version at a moment (ISO 8601, UTC)."""

    version: str | None
    outcome: Outcome
    at: str
    reason: str = ""


_EVENT = TypeAdapter(Event)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An event, and until when it held; `until` is None while it does."""

    version: str | None
    state: Outcome
    since: str
    until: str | None
    reason: str


class History:
    """The last thousand events of one reference; kept in memory where the disk won't take them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writing = asyncio.Lock()
        self._events: deque[Event] = deque(_read(file), maxlen=_MAX_EVENTS)
        self.outcomes: Counter[Outcome] = Counter()
        """How many events this process has seen of each kind."""

    async def add(self, event: Event) -> None:
        """Record an event, unless it repeats what is known, as a restart makes it."""
        self.outcomes[event.outcome] += 1
        if self._is_known(event):
            return
        self._events.append(event)
        async with self._writing:  # one after the other, so that what is written last is the whole
            with suppress(OSError):
                await asyncio.to_thread(_write, self._file, tuple(self._events))

    def _is_known(self, event: Event) -> bool:
        if event.outcome is Outcome.LIVE:  # whatever was refused since, and however it compares now
            live = [each.version for each in self._events if each.outcome is Outcome.LIVE]
            return live[-1:] == [event.version]
        last = self._events[-1] if self._events else None
        return last is not None and replace(event, at="") == replace(last, at="")

    def periods(self, most: int = _MAX_EVENTS) -> list[HistoryEntry]:
        """The last events with their ends, the newest first."""
        return entries(tuple(self._events)[-most:])


def entries(events: Sequence[Event]) -> list[HistoryEntry]:
    """Events with their ends, the newest first: what was live was so until the next went live."""
    found: list[HistoryEntry] = []
    next_live: str | None = None
    for event in reversed(events):
        until = next_live if event.outcome is Outcome.LIVE else event.at
        found.append(HistoryEntry(event.version, event.outcome, event.at, until, event.reason))
        if event.outcome is Outcome.LIVE:
            next_live = event.at
    return found


def _read(file: Path) -> list[Event]:
    events = []
    with suppress(OSError):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError):  # a line that was cut off when the disk was full, or has rotted since
                events.append(_EVENT.validate_json(line))
    return events


def _write(file: Path, events: Sequence[Event]) -> None:
    atomic_write(file, "".join(json.dumps(asdict(event)) + "\n" for event in events))
