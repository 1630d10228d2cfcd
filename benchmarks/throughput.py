"""Throughput of this service with real inference, compared with a FastAPI endpoint that returns a constant.

A third system is the service with its cache, which receives the same row every time: the best case of a
cache. It helps only if clients repeat requests byte by byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks import report, servers
from benchmarks.report import ReportTable, range_of
from benchmarks.wrk import LoadResult, drive

ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
SERVING, CACHED, CONSTANT = "serving", "serving, cached", "constant"

Rounds = dict[int, dict[str, list[LoadResult]]]
"""Measurements by number of connections, then by system, one per round."""


def make_registry(folder: Path, uri: str | None = None) -> str:
    """Train and promote an iris model in a registry, by default a new one in `folder`; return its URI."""
    if uri is None:
        (folder / "mlruns").mkdir()
        uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    command = [sys.executable, "-m", "training", "bootstrap"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run(command, env=env, check=True, capture_output=True)
    return uri


def measure(folder: Path, connections: Sequence[int], rounds: int, seconds: float) -> Rounds:
    """Check each system, then measure them in turn, round by round."""
    results: Rounds = {count: {SERVING: [], CACHED: [], CONSTANT: []} for count in connections}
    registry = make_registry(folder)
    cached = servers.serving(registry, folder, env={"SERVING_CACHED_MODELS": "iris"})
    with servers.serving(registry, folder) as ours, cached as kept, servers.constant(folder) as theirs:
        systems = {SERVING: ours, CACHED: kept, CONSTANT: theirs}
        for url in systems.values():
            _check(url)
            drive(f"{url}/predict", ROW, folder, connections=max(connections), seconds=1)
        for _ in range(rounds):
            for count in connections:
                for name, url in systems.items():
                    measured = drive(f"{url}/predict", ROW, folder, connections=count, seconds=seconds)
                    results[count][name].append(measured)
        for url in systems.values():
            _check(url)
    return results


def ratios(results: Rounds, connections: int, system: str = SERVING) -> list[float]:
    """Return the ratios of a system's requests per second to the constant's, round by round."""
    pairs = zip(results[connections][system], results[connections][CONSTANT], strict=True)
    return [ours.rate / theirs.rate for ours, theirs in pairs]


def tables(results: Rounds) -> list[ReportTable]:
    """Return the tables: minimum, median and maximum of the rounds."""
    rows = [
        (
            str(count),
            name,
            *(range_of([getattr(result, value) for result in rounds]) for value in ("rate", "p50", "p99")),
            range_of(ratios(results, count, name)),
            str(sum(result.failed for result in rounds)),
        )
        for count, systems in results.items()
        for name, rounds in systems.items()
    ]
    columns = ("connections", "system", "requests/s", "p50 ms", "p99 ms", "ratio to the constant", "failed")
    return [ReportTable("`/predict`, one row: min / median / max", columns, tuple(rows))]


def show(results: Rounds, out: Console) -> None:
    """Print the results."""
    report.show(tables(results), out)


def markdown(results: Rounds) -> str:
    """Return the section of `RESULTS.md`."""
    return report.markdown("Throughput: `python -m benchmarks throughput`", tables(results))


def raw(results: Rounds) -> dict[str, Any]:
    """Return all measurements for JSON."""
    return {
        str(count): {name: [asdict(result) for result in rounds] for name, rounds in systems.items()}
        for count, systems in results.items()
    }


def failures(results: Rounds) -> int:
    """Return the total number of failed requests."""
    return sum(
        result.failed for systems in results.values() for rounds in systems.values() for result in rounds
    )


def _check(url: str) -> None:
    response = httpx.post(f"{url}/predict", json=ROW).raise_for_status().json()
    if response["label"] != "setosa" or response["model"] != {"name": "iris", "version": "1"}:
        raise RuntimeError(f"{url} returned {response}")
