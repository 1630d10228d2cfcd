"""Results of every system, and the ratios computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.peers.runner import Run

OURS, CONSTANT = "this service", "FastAPI, a constant"
BUSY = 64
"""Number of connections at which requests per second are compared."""
CONNECTIONS = (1, BUSY)


@dataclass(frozen=True, slots=True)
class Entry:
    """One system: one run per round, or why it was not installed; `installed` lists its environment."""

    name: str
    version: str
    setting: str
    runs: tuple[Run, ...] = ()
    not_installed: str | None = None
    installed: Mapping[str, str] = field(default_factory=dict)

    def values(self, value: str, connections: int) -> list[float]:
        """Return `rate`, `p50` or `p99` of each round that was measured with this many connections."""
        runs = (run.measured.get(connections) for run in self.runs)
        return [getattr(measured, value) for measured in runs if measured]


@dataclass(frozen=True, slots=True)
class Results:
    """All entries with date and machine; `model` lists the requirements that the model was logged with."""

    date: str
    machine: str
    python: str
    rounds: int
    seconds: float
    model: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def ours(self) -> Entry:
        """Return the entry of this service."""
        return next(entry for entry in self.entries if entry.name == OURS)


def ratios(ours: Entry, theirs: Entry, connections: int = BUSY) -> list[float]:
    """Return the ratios of our requests per second to theirs; skip rounds that either system lacks."""
    pairs = zip(ours.runs, theirs.runs, strict=False)
    both = [(one.measured.get(connections), other.measured.get(connections)) for one, other in pairs]
    return [one.rate / other.rate for one, other in both if one and other and other.rate]


def faults(entries: Sequence[Entry]) -> list[str]:
    """Return one line per fault: wrong predictions, failed requests, servers that did not start."""
    lines = []
    for entry in entries:
        for number, run in enumerate(entry.runs, 1):
            failed = sum(measured.failed for measured in run.measured.values())
            messages = [run.fault] if run.fault else []
            messages += [f"{failed} requests failed"] if failed else []
            lines += [f"{entry.name}, round {number}: {fault}" for fault in messages]
    return lines


def failures(results: Results) -> int:
    """Return the total number of failed requests; a run with another fault counts as one."""
    runs = [run for entry in results.entries for run in entry.runs]
    failed = sum(measured.failed for run in runs for measured in run.measured.values())
    return failed + sum(run.fault is not None for run in runs)


def raw(results: Results) -> dict[str, Any]:
    """Return all data for JSON."""
    return asdict(results)
