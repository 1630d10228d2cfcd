"""Load above the capacity of a model: latencies of accepted and of rejected requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from benchmarks import report, servers
from benchmarks.client import Latencies, summary
from benchmarks.models.fixed_latency import SECONDS_PER_ROW
from benchmarks.open_loop import Response, send_at_rate
from benchmarks.promotion import registry_client
from benchmarks.report import ReportTable, range_of
from benchmarks.throughput import ROW, make_registry

LOADS = (0.5, 2, 10)
_WAIT_LABELS = {"0.1": "0.1 s", "1": "1 s, the default", "3600": "unlimited"}
NAME = "fixed-latency"


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One setting under one load in one round; latencies are in milliseconds."""

    wait: str
    load: float
    seconds: float
    succeeded: int
    rejected: int
    failed: int
    accepted: Latencies | None
    """Latencies of accepted requests."""
    rejection: Latencies | None
    """Latencies of requests that were rejected with 503."""


def measure(folder: Path, rounds: int, seconds: float) -> list[LoadRun]:
    """Measure each setting in turn, round by round.

    Raises:
        NotStarted: A service does not start.
    """
    registry = make_registry(folder)
    register(registry)
    results = []
    with ExitStack() as stack:
        urls = {wait: stack.enter_context(_serving(registry, folder, wait)) for wait in _WAIT_LABELS}
        for url in urls.values():
            _run_load(url, "", 2, 2)
        for _ in range(rounds):
            for load in LOADS:
                results += [_run_load(url, wait, load, seconds) for wait, url in urls.items()]
    return results


def show(results: Sequence[LoadRun], out: Console) -> None:
    """Print the results."""
    report.show([_table(results)], out)


def markdown(results: Sequence[LoadRun]) -> str:
    """Return the section of RESULTS.md."""
    return report.markdown("Overload: `python -m benchmarks overload`", [_table(results)])


def raw(results: Sequence[LoadRun]) -> list[dict[str, Any]]:
    """Return all measurements for JSON."""
    return [asdict(run) for run in results]


def failures(results: Sequence[LoadRun]) -> int:
    """Return how many requests were neither accepted nor rejected, with the settings that shed load."""
    return sum(run.failed for run in results if run.wait != "3600")


def _serving(registry: str, folder: Path, wait: str) -> Any:
    place = folder / f"wait-{wait}"
    place.mkdir()
    env = {"SERVING_MODELS": f"models:/{NAME}/1", "SERVING_MAX_QUEUE_SECONDS": wait}
    return servers.serving(registry, place, env=env)


def _run_load(url: str, wait: str, load: float, seconds: float) -> LoadRun:
    responses = asyncio.run(
        send_at_rate(f"{url}/predict", orjson.dumps(ROW), load / SECONDS_PER_ROW, seconds)
    )
    succeeded, rejected = _with(responses, 200), _with(responses, 503)
    failed = len(responses) - len(succeeded) - len(rejected)
    accepted, rejection = (summary(run) if run else None for run in (succeeded, rejected))
    return LoadRun(wait, load, seconds, len(succeeded), len(rejected), failed, accepted, rejection)


def _with(responses: Sequence[Response], status: int) -> list[float]:
    return [run.seconds * 1e3 for run in responses if run.status == status]


def register(registry: str) -> None:
    """Log the model in a registry."""
    registry_client(registry)
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    flowers = pd.DataFrame([ROW])
    mlflow.set_experiment("iris")  # its artifacts are stored in `folder`
    mlflow.pyfunc.log_model(
        name=NAME,
        python_model=str(Path(__file__).with_name("models") / "fixed_latency.py"),
        signature=infer_signature(flowers, [0.0]),
        input_example=flowers,
        pip_requirements=["mlflow"],  # otherwise MLflow loads the model once more to infer them
        registered_model_name=NAME,
    )


def _table(results: Sequence[LoadRun]) -> ReportTable:
    lines = []
    for wait, label in _WAIT_LABELS.items():
        for load in LOADS:
            rounds = [run for run in results if (run.wait, run.load) == (wait, load)]
            accepted = [run.accepted for run in rounds if run.accepted]
            rejection = [run.rejection for run in rounds if run.rejection]
            lines.append(
                (
                    label,
                    f"{load:g}",
                    range_of([run.succeeded / run.seconds * SECONDS_PER_ROW for run in rounds]),
                    range_of([run.p50 for run in accepted]) if accepted else "–",
                    range_of([run.p99 for run in accepted]) if accepted else "–",
                    str(sum(run.rejected for run in rounds)),
                    range_of([run.p99 for run in rejection]) if rejection else "–",
                    str(sum(run.failed for run in rounds)),
                )
            )
    columns = (
        "max queue time",
        "offered load / capacity",
        "accepted / capacity",
        "p50 ms",
        "p99 ms",
        "rejected",
        "p99 of rejections, ms",
        "failed",
    )
    notes = (
        f"The model takes {SECONDS_PER_ROW * 1e3:g} ms per row: its capacity is {1 / SECONDS_PER_ROW:g} "
        "rows/s; requests of one row arrive at a constant rate, regardless of earlier responses. "
        "Latencies start at a request's due time. Min / median / max of the rounds.",
    )
    return ReportTable("Load above the capacity of a model", columns, tuple(lines), notes)
