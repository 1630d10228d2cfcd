"""Requests with many rows, compared with MLflow's server and the bare model, and small requests meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import orjson
from rich.console import Console

from benchmarks import report, servers
from benchmarks.client import HttpClient, Latencies, Prober, repeat, repeated_requests
from benchmarks.report import ReportTable, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

SIZES = (1, 100, 10_000, 100_000)
SERVING, SPLIT, RECORDS, BARE = "serving", "MLflow, split", "MLflow, records", "bare model"
_SEED = 20_240_229
_RANGES = {"sepal_length": (4, 8), "sepal_width": (2, 4.5), "petal_length": (1, 7), "petal_width": (0.1, 2.5)}
_TOLERANCE = 1e-6
_CHECKED_ROWS = 7
_SMALL_CONNECTIONS = 4
_PROBES_PER_SECOND = 50

Speeds = dict[int, dict[str, list[float]]]
"""Rows per second: by number of rows, then by system, one value per round."""


class WrongPrediction(Exception):
    """Raised when a system returns another number of rows, or other predictions, than the bare model."""


@dataclass(frozen=True, slots=True)
class Small:
    """Latencies of small requests: over a few busy connections, and at a constant rate."""

    load: LoadResult
    latencies: Latencies


@dataclass(frozen=True, slots=True)
class Beside:
    """Small requests alone, and next to a client that sends large batches back to back."""

    quiet: Small
    busy: Small
    seconds_per_batch: float


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements."""

    speeds: Speeds
    body_bytes: dict[int, int]
    response_bytes: dict[int, dict[str, int]]
    beside: list[Beside]


def rows(count: int) -> list[dict[str, float]]:
    """Return distinct rows, the same in every run; values have three decimals."""
    random = Random(_SEED)
    return [{name: round(random.uniform(*ends), 3) for name, ends in _RANGES.items()} for _ in range(count)]


def bodies(count: int) -> dict[str, bytes]:
    """Return the same rows in the JSON format of each system."""
    generated = rows(count)
    split = {"columns": [*_RANGES], "data": [[*row.values()] for row in generated]}
    return {
        SERVING: orjson.dumps({"rows": generated}),
        SPLIT: orjson.dumps({"dataframe_split": split}),
        RECORDS: orjson.dumps({"dataframe_records": generated}),
    }


def measure(folder: Path, sizes: Sequence[int], rounds: int, seconds: float) -> Results:
    """Send the same rows to each system in turn, round by round, one request at a time.

    Raises:
        WrongPrediction: A system disagrees with the bare model.
        NotStarted: A system does not start.
    """
    registry = make_registry(folder)
    results = Results({count: {} for count in sizes}, {}, {count: {} for count in sizes}, [])
    with (
        servers.serving(registry, folder) as ours,
        servers.mlflow_scoring(registry, "models:/iris/1", folder) as theirs,
        _bare(registry) as bare,
    ):
        urls = {
            SERVING: f"{ours}/predict/batch",
            SPLIT: f"{theirs}/invocations",
            RECORDS: f"{theirs}/invocations",
        }
        requests = {count: bodies(count) for count in sizes}
        for _ in range(rounds):
            for count in sizes:
                results.body_bytes[count] = len(requests[count][SERVING])
                for name, body in requests[count].items():
                    with HttpClient(urls[name]) as client:
                        response = client.request(body)
                        results.response_bytes[count][name] = len(response)
                        check(name, response, count, bare.predictions(count))
                        _record(results, count, name, repeat(partial(client.request, body), seconds))
                _record(results, count, BARE, bare.seconds(count, seconds))
        with Prober() as prober:
            for _ in range(rounds):
                results.beside.append(
                    _measure_beside(ours, requests[max(sizes)][SERVING], folder, prober, 2 * seconds)
                )
    return results


def check(name: str, response: bytes, count: int, wanted: dict[int, list[float]]) -> None:
    """Compare the number of predictions, and the probabilities of the rows in `wanted`, with the bare model.

    Raises:
        WrongPrediction: They differ.
    """
    predictions = orjson.loads(response)["predictions"]
    if len(predictions) != count:
        raise WrongPrediction(f"{name} returned {len(predictions)} rows for {count}")
    for index, chances in wanted.items():
        predicted = predictions[index]
        predicted = [*predicted["probabilities"].values()] if isinstance(predicted, dict) else predicted
        if any(
            abs(value - reference) > _TOLERANCE for value, reference in zip(predicted, chances, strict=True)
        ):
            raise WrongPrediction(f"{name} returned {predicted} for row {index}, the bare model {chances}")


def better(speeds: dict[str, list[float]]) -> str:
    """Return the faster of MLflow's two formats, by the median."""
    return max((SPLIT, RECORDS), key=lambda name: median(speeds[name]))


def ratios(speeds: dict[str, list[float]], to: str) -> list[float]:
    """Return the ratios of our rows per second to another system's, round by round."""
    return [ours / theirs for ours, theirs in zip(speeds[SERVING], speeds[to], strict=True)]


def show(results: Results, out: Console) -> None:
    """Print the results."""
    report.show(_tables(results), out)


def markdown(results: Results) -> str:
    """Return the section of RESULTS.md."""
    return report.markdown("Many rows in one request", _tables(results))


def raw(results: Results) -> dict[str, Any]:
    """Return all measurements for JSON."""
    return asdict(results)


def failures(results: Results) -> int:
    """Return the total number of failed small requests."""
    return sum(result.quiet.load.failed + result.busy.load.failed for result in results.beside)


def _record(results: Results, count: int, name: str, seconds: float) -> None:
    results.speeds[count].setdefault(name, []).append(count / seconds)


def _measure_beside(url: str, body: bytes, folder: Path, prober: Prober, seconds: float) -> Beside:
    quiet = _measure_small(url, folder, prober, seconds)
    with repeated_requests(f"{url}/predict/batch", body) as seconds_taken:
        busy = _measure_small(url, folder, prober, seconds)
    return Beside(quiet, busy, median(seconds_taken))


def _measure_small(url: str, folder: Path, prober: Prober, seconds: float) -> Small:
    """Measure wrk and the probe one after the other: wrk would delay the probe's requests."""
    predict = f"{url}/predict"
    load = drive(predict, ROW, folder, connections=_SMALL_CONNECTIONS, seconds=seconds)
    return Small(load, prober.start(predict, _PROBES_PER_SECOND, seconds, orjson.dumps(ROW)).result())


# -- the bare model, in its own process


class _Bare:
    def __init__(self, process: ProcessPoolExecutor, registry: str) -> None:
        self._process, self._registry = process, registry
        self._predictions: dict[int, dict[int, list[float]]] = {}

    def seconds(self, count: int, seconds: float) -> float:
        return self._process.submit(_timed, self._registry, count, seconds).result()

    def predictions(self, count: int) -> dict[int, list[float]]:
        if count not in self._predictions:
            self._predictions[count] = self._process.submit(
                _sample_predictions, self._registry, count
            ).result()
        return self._predictions[count]


@contextmanager
def _bare(registry: str) -> Iterator[_Bare]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield _Bare(process, registry)


def _timed(registry: str, count: int, seconds: float) -> float:
    predict, frame = _predict(registry), _frame(count)
    return repeat(lambda: predict(frame), seconds)


def _sample_predictions(registry: str, count: int) -> dict[int, list[float]]:
    chances = _predict(registry)(_frame(count))
    indices = {round(share * (count - 1) / (_CHECKED_ROWS - 1)) for share in range(_CHECKED_ROWS)}
    return {index: [float(chance) for chance in chances[index]] for index in sorted(indices)}


@cache
def _predict(registry: str) -> Callable[[Any], Any]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    mlflow.set_tracking_uri(registry)
    predict: Callable[[Any], Any] = mlflow.pyfunc.load_model("models:/iris/1").predict
    return predict


@cache
def _frame(count: int) -> Any:
    import pandas as pd

    return pd.DataFrame(rows(count))


# -- report


def _tables(results: Results) -> list[ReportTable]:
    return [_speed_table(results), *([_small_requests_table(results.beside)] if results.beside else [])]


def _speed_table(results: Results) -> ReportTable:
    lines, notes = [], []
    for count, speeds in results.speeds.items():
        for name, values in speeds.items():
            of_bare = [value / reference for value, reference in zip(values, speeds[BARE], strict=True)]
            took = [1e3 * count / speed for speed in values]
            size = results.response_bytes[count].get(name)
            lines.append(
                (
                    f"{count:,}",
                    name,
                    range_of(values),
                    range_of(took),
                    range_of(of_bare),
                    "–" if size is None else f"{size / 1e6:.4f}",
                )
            )
        best = better(speeds)
        notes.append(f"{count:,} row{'s' * (count > 1)}: serving / {best} = {range_of(ratios(speeds, best))}")
    notes.append("One client on one connection, one request at a time; min / median / max of the rounds.")
    sizes = ", ".join(f"{size / 1e6:.4f} MB for {count:,}" for count, size in results.body_bytes.items())
    notes.append(f"Bodies to serving: {sizes}; SERVING_MAX_BODY_BYTES is at its default.")
    columns = ("rows", "system", "rows/s", "ms per request", "ratio to the bare model", "response MB")
    return ReportTable("Rows per second", columns, tuple(lines), tuple(notes))


def _small_requests_table(beside: Sequence[Beside]) -> ReportTable:
    figures: dict[str, Callable[[Small], float]] = {
        "wrk, 4 connections: requests/s": lambda small: small.load.rate,
        "wrk, 4 connections: p99 ms": lambda small: small.load.p99,
        "wrk, 4 connections: worst ms": lambda small: small.load.worst,
        "50 per second: p50 ms": lambda small: small.latencies.p50,
        "50 per second: p99 ms": lambda small: small.latencies.p99,
        "50 per second: worst ms": lambda small: small.latencies.worst,
    }
    lines = []
    for name, of in figures.items():
        quiet, busy = [of(result.quiet) for result in beside], [of(result.busy) for result in beside]
        times = [value / reference for value, reference in zip(busy, quiet, strict=True)]
        lines.append((name, range_of(quiet), range_of(busy), range_of(times)))
    batches = range_of([result.seconds_per_batch for result in beside])
    notes = (
        f"Meanwhile one client sends the largest batch repeatedly; a batch took {batches} s.",
        "wrk sends nothing while it waits, so that a stall counts once per connection. At a constant rate, "
        "every request that a stall delays counts.",
    )
    return ReportTable(
        "Small requests next to large ones", ("", "alone", "next to a batch", "ratio"), tuple(lines), notes
    )
