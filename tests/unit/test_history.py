"""The history survives restarts, and disk failures cost only its persistence.

`test_promotion_faults.py` verifies that a service reports it after a restart.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from serving.registry.history import Event, History, HistoryEntry, with_ends
from serving.version import Outcome

pytestmark = pytest.mark.anyio

FIRST = Event("1", Outcome.LIVE, "2026-01-01T00:00:00+00:00")
BAD = Event("2", Outcome.REJECTED, "2026-01-02T00:00:00+00:00", "it is broken")
SECOND = Event("3", Outcome.LIVE, "2026-01-03T00:00:00+00:00")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_live_entry_ends_when_the_next_goes_live() -> None:
    assert with_ends([FIRST, BAD, SECOND]) == [
        HistoryEntry("3", Outcome.LIVE, SECOND.at, None, ""),
        HistoryEntry("2", Outcome.REJECTED, BAD.at, BAD.at, "it is broken"),
        HistoryEntry("1", Outcome.LIVE, FIRST.at, SECOND.at, ""),
    ]


async def test_history_survives_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.jsonl"
    history = History(file)
    for event in (FIRST, BAD, SECOND):
        await history.add(event)
    assert History(file).periods() == history.periods()


async def test_restart_on_the_same_version_adds_no_event(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    for event in (FIRST, BAD):
        await History(file).add(event)
    again = History(file)
    for event in (replace(FIRST, at=SECOND.at, reason="from the copy on disk"), replace(BAD, at=SECOND.at)):
        await again.add(event)
    assert [period.since for period in again.periods()] == [BAD.at, FIRST.at]


async def test_version_that_goes_live_again_is_an_event(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for event in (FIRST, SECOND, FIRST):
        await history.add(event)
    assert [period.version for period in history.periods()] == ["1", "3", "1"]


async def test_truncated_line_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    await History(file).add(FIRST)
    with file.open("a") as opened:
        opened.write('{"version": "2", "outco')
    assert [period.version for period in History(file).periods()] == ["1"]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"{}",
        b"[]",
        b"7",
        b'"live"',
        b"null",
        b'{"version": "2", "outcome": "dead", "at": "2026-01-02"}',
        b'{"version": 2, "outcome": "live", "at": "2026-01-02"}',
        b'{"version": "2", "outcome": "live", "at": null}',
        b'{"version": "2", "outcome": "live"}',
    ],
    ids=repr,
)
async def test_damaged_line_is_skipped(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "history.jsonl"
    await History(file).add(FIRST)
    file.write_bytes(line + b"\n" + file.read_bytes() + line)
    again = History(file)
    assert [period.version for period in again.periods()] == ["1"]
    await again.add(SECOND)
    assert [period.version for period in History(file).periods()] == ["3", "1"]


async def test_simultaneous_events_are_all_recorded(tmp_path: Path) -> None:
    for number in range(20):
        history = History(tmp_path / f"{number}.jsonl")
        events = [Event(str(version), Outcome.LIVE, FIRST.at, "x" * 5000) for version in range(20)]
        await asyncio.gather(*map(history.add, events))
        assert len(History(tmp_path / f"{number}.jsonl").periods()) == 20


async def test_history_stays_in_memory_if_the_disk_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    history = History(tmp_path / "file" / "history.jsonl")
    await history.add(FIRST)
    assert [period.version for period in history.periods()] == ["1"]


async def test_history_is_bounded(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history._events.extend(Event(str(number), Outcome.LIVE, FIRST.at) for number in range(1500))
    await history.add(SECOND)
    assert len(History(tmp_path / "history.jsonl").periods()) == 1000
