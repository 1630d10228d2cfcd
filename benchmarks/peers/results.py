"""What was found: every system's turns, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.peers.runner import Run

OURS, CONSTANT = "this service", "FastAPI, a constant"
BUSY = 64
"""Connections at which requests a second are compared."""
CONNECTIONS = (1, BUSY)


@dataclass(frozen=True, slots=True)
class Entry:
    """One system: a turn a round, or why it was not installed; `installed` is all of its environment."""

    name: str
    version: str
    setting: str
    runs: tuple[Run, ...] = ()
    not_installed: str | None = None
    installed: Mapping[str, str] = field(default_factory=dict)

    def values(self, value: str, connections: int) -> list[float]:
        """`rate`, `p50` or `p99` of each round that was measured at this many connections."""
        runs = (run.measured.get(connections) for run in self.runs)
        return [getattr(measured, value) for measured in runs if measured]


@dataclass(frozen=True, slots=True)
class Results:
    """All entries, with when and on what they were measured; `model` is what the model was logged with."""

    date: str
    machine: str
    python: str
    rounds: int
    seconds: float
    model: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def ours(self) -> Entry:
        """This service."""
        return next(entry for entry in self.entries if entry.name == OURS)


def ratios(ours: Entry, theirs: Entry, connections: int = BUSY) -> list[float]:
    """Our requests a second to theirs, each of the same round; rounds that either lacks are left out."""
    pairs = zip(ours.runs, theirs.runs, strict=False)
    both = [(one.measured.get(connections), other.measured.get(connections)) for one, other in pairs]
    return [one.rate / other.rate for one, other in both if one and other and other.rate]


def faults(entries: Sequence[Entry]) -> list[str]:
    """What went wrong, a line each: wrong answers, failed requests, servers that did not start."""
    lines = []
    for entry in entries:
        for number, run in enumerate(entry.runs, 1):
            failed = sum(measured.failed for measured in run.measured.values())
            messages = [run.fault] if run.fault else []
            messages += [f"{failed} requests failed"] if failed else []
            lines += [f"{entry.name}, round {number}: {fault}" for fault in messages]
    return lines


def failures(results: Results) -> int:
    """How many requests failed in all; a turn that ended otherwise counts as one."""
    runs = [run for entry in results.entries for run in entry.runs]
    failed = sum(measured.failed for run in runs for measured in run.measured.values())
    return failed + sum(run.fault is not None for run in runs)


def raw(results: Results) -> dict[str, Any]:
    """Everything, for JSON."""
    return asdict(results)
