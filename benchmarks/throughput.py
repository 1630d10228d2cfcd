"""This service, doing real inference, beside a FastAPI endpoint of the same types that returns a constant.

The service with its cache is driven, too: with the same row again and again, which is the best that a cache
can meet. It helps as far as callers repeat themselves to the byte.
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

from benchmarks import service, sheet
from benchmarks.load import Measured, drive
from benchmarks.sheet import Sheet, range_of

ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
SERVING, CACHED, CONSTANT = "serving", "serving, cached", "constant"

Rounds = dict[int, dict[str, list[Measured]]]
"""By number of connections, then by system: a measurement a round."""


def make_registry(folder: Path, uri: str | None = None) -> str:
    """Train, register and promote an iris model in a registry, by default one in `folder`; gives its URI."""
    if uri is None:
        (folder / "mlruns").mkdir()
        uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    command = [sys.executable, "-m", "training", "bootstrap"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run(command, env=env, check=True, capture_output=True)
    return uri


def measure(folder: Path, connections: Sequence[int], rounds: int, seconds: float) -> Rounds:
    """Drive the systems in turn, round by round, after each has answered rightly."""
    found: Rounds = {count: {SERVING: [], CACHED: [], CONSTANT: []} for count in connections}
    registry = make_registry(folder)
    cached = service.serving(registry, folder, env={"SERVING_CACHED_MODELS": "iris"})
    with service.serving(registry, folder) as ours, cached as kept, service.constant(folder) as theirs:
        systems = {SERVING: ours, CACHED: kept, CONSTANT: theirs}
        for url in systems.values():
            _check(url)
            drive(f"{url}/predict", ROW, folder, connections=max(connections), seconds=1)
        for _ in range(rounds):
            for count in connections:
                for name, url in systems.items():
                    measured = drive(f"{url}/predict", ROW, folder, connections=count, seconds=seconds)
                    found[count][name].append(measured)
        for url in systems.values():
            _check(url)
    return found


def ratios(found: Rounds, connections: int, system: str = SERVING) -> list[float]:
    """A system's requests a second to the constant's, each of the same round."""
    pairs = zip(found[connections][system], found[connections][CONSTANT], strict=True)
    return [ours.rate / theirs.rate for ours, theirs in pairs]


def sheets(found: Rounds) -> list[Sheet]:
    """What was found: the median, and the least and the most of the rounds."""
    rows = [
        (
            str(count),
            name,
            *(range_of([getattr(each, value) for each in rounds]) for value in ("rate", "p50", "p99")),
            range_of(ratios(found, count, name)),
            str(sum(each.failed for each in rounds)),
        )
        for count, systems in found.items()
        for name, rounds in systems.items()
    ]
    columns = ("connections", "system", "requests/s", "p50 ms", "p99 ms", "ratio to the constant", "failed")
    return [Sheet("`/predict`, one row: least / median / most", columns, tuple(rows))]


def show(found: Rounds, out: Console) -> None:
    """Print what was found."""
    sheet.show(sheets(found), out)


def markdown(found: Rounds) -> str:
    """The section of `RESULTS.md`."""
    return sheet.markdown("Throughput: `python -m benchmarks throughput`", sheets(found))


def raw(found: Rounds) -> dict[str, Any]:
    """All measurements, for JSON."""
    return {
        str(count): {name: [asdict(each) for each in rounds] for name, rounds in systems.items()}
        for count, systems in found.items()
    }


def failures(found: Rounds) -> int:
    """How many requests failed in all."""
    return sum(each.failed for systems in found.values() for rounds in systems.values() for each in rounds)


def _check(url: str) -> None:
    answer = httpx.post(f"{url}/predict", json=ROW).raise_for_status().json()
    if answer["label"] != "setosa" or answer["model"] != {"name": "iris", "version": "1"}:
        raise RuntimeError(f"{url} answers {answer}")
