"""What it costs to record every prediction: without a journal, on SQLite and on PostgreSQL, in turn."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks import service, sheet
from benchmarks.load import Measured, drive
from benchmarks.postgres import Postgres
from benchmarks.sheet import Sheet, range_of
from benchmarks.throughput import ROW, make_registry

OFF, SQLITE, POSTGRES = "off", "SQLite", "PostgreSQL"
_RECORDS = re.compile(r'^serving_journal_records_total\{outcome="(\w+)"\} (\S+)$', re.MULTILINE)

Rounds = dict[str, list[Measured]]
"""By journal: a measurement a round."""
Counts = dict[str, dict[str, int]]
"""By journal: how many predictions were written and dropped."""


def measure(folder: Path, connections: int, rounds: int, seconds: float) -> tuple[Rounds, Counts]:
    """Drive the services in turn, round by round, and count what became of the predictions."""
    registry = make_registry(folder)
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres())
        urls = {
            OFF: "",
            SQLITE: f"sqlite:///{folder / 'journal.db'}",
            POSTGRES: postgres.create("journal"),
        }
        systems = {
            name: stack.enter_context(service.serving(registry, folder, env={"SERVING_JOURNAL_URL": url}))
            for name, url in urls.items()
        }
        for url in systems.values():
            drive(f"{url}/predict", ROW, folder, connections=connections, seconds=1)
        found: Rounds = {name: [] for name in systems}
        for _ in range(rounds):
            for name, url in systems.items():
                found[name].append(
                    drive(f"{url}/predict", ROW, folder, connections=connections, seconds=seconds)
                )
        return found, {name: _counts(systems[name]) for name in (SQLITE, POSTGRES)}


def _counts(url: str) -> dict[str, int]:
    """How many predictions were written and dropped, once none waits."""
    while True:
        text = httpx.get(f"{url}/metrics").text
        if "serving_journal_pending_records 0.0" in text:
            return {outcome: int(float(value)) for outcome, value in _RECORDS.findall(text)}


def ratios(found: Rounds, journal: str) -> list[float]:
    """Requests a second with a journal to those without, each of the same round."""
    return [ours.rate / off.rate for ours, off in zip(found[journal], found[OFF], strict=True)]


def sheets(found: Rounds, counts: Counts) -> list[Sheet]:
    """What was found: the median, and the least and the most of the rounds."""
    rows = [
        (
            name,
            *(range_of([getattr(each, value) for each in rounds]) for value in ("rate", "p50", "p99")),
            range_of(ratios(found, name)),
            *(f"{counts[name][outcome]:,}" if name in counts else "–" for outcome in ("written", "dropped")),
        )
        for name, rounds in found.items()
    ]
    columns = ("journal", "requests/s", "p50 ms", "p99 ms", "ratio to off", "written", "dropped")
    return [Sheet("`/predict`, one row, 64 connections: least / median / most", columns, tuple(rows))]


def show(found: Rounds, counts: Counts, out: Console) -> None:
    """Print what was found."""
    sheet.show(sheets(found, counts), out)


def markdown(found: Rounds, counts: Counts) -> str:
    """The section of `RESULTS.md`."""
    return sheet.markdown("The journal: `python -m benchmarks journal`", sheets(found, counts))


def raw(found: Rounds, counts: Counts) -> dict[str, Any]:
    """All measurements, for JSON."""
    return {name: [asdict(each) for each in rounds] for name, rounds in found.items()} | {"records": counts}


def failures(found: Rounds) -> int:
    """How many requests failed in all."""
    return sum(each.failed for rounds in found.values() for each in rounds)
