"""Time of an evaluation on labelled rows beside busy clients, and its effect on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from rich.console import Console
from sklearn.datasets import load_iris

from benchmarks import report, servers
from benchmarks.promotion import more_versions, registry_client, seconds_to_live
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

_CONNECTIONS = 64
_RULES = "accuracy >= champion - 0.005; recall[virginica] >= 0.5"


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Measurements of promotions without and with an evaluation, each beside the same load.

    `plain` and `evaluated` are the seconds from each promotion to the first prediction of its version;
    `beside_plain` and `beside_evaluated` are the clients' measurements during them.
    """

    rows: int
    plain: Sequence[float]
    evaluated: Sequence[float]
    beside_plain: Sequence[LoadResult]
    beside_evaluated: Sequence[LoadResult]

    @property
    def evaluation_seconds(self) -> float:
        """Return the median of the additional time of a promotion with an evaluation."""
        return median(self.evaluated) - median(self.plain)

    @property
    def p99_ratio(self) -> float:
        """Return the ratio of the clients' median p99 beside evaluations to that beside other promotions."""
        return median(load.p99 for load in self.beside_evaluated) / median(
            load.p99 for load in self.beside_plain
        )

    @property
    def failed(self) -> int:
        """Return the number of failed requests."""
        return sum(load.failed for load in [*self.beside_plain, *self.beside_evaluated])


def measure(folder: Path, rows: int, rounds: int, seconds: float) -> Evaluations:
    """Promote versions in turn without and with rules, while wrk sends requests without a pause."""
    registry = make_registry(folder)
    client = registry_client(registry)
    location = _write_rows(folder, rows)
    client.set_registered_model_tag("iris", "serving.evaluation", location)
    times: tuple[list[float], list[float]] = ([], [])
    loads: tuple[list[LoadResult], list[LoadResult]] = ([], [])
    with servers.serving(registry, folder) as url, ThreadPoolExecutor() as pool:
        predict = f"{url}/predict"
        drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=1)
        for index, version in enumerate(more_versions(client, "iris", 2 * rounds)):
            kind = index % 2
            client.set_registered_model_tag("iris", "serving.require", _RULES if kind else "")
            load = pool.submit(drive, predict, ROW, folder, connections=_CONNECTIONS, seconds=seconds)
            times[kind].append(
                seconds_to_live(
                    predict,
                    version,
                    lambda number: client.transition_model_version_stage("iris", number, "Production", True),
                )
            )
            loads[kind].append(load.result())
    return Evaluations(rows, *times, *loads)


def _write_rows(folder: Path, count: int) -> str:
    """Write rows of iris with noise; return the value of the tag that names them."""
    iris = load_iris(as_frame=True)
    chance = np.random.default_rng(0)
    chosen = chance.integers(0, len(iris.target), count)
    values = iris.data.to_numpy()[chosen] + chance.normal(0, 0.05, (count, 4))
    table = pd.DataFrame(np.clip(values, 0.1, 10), columns=[*ROW])
    table["target"] = iris.target_names[iris.target.to_numpy()[chosen]]
    path = folder / "rows.parquet"
    table.to_parquet(path)
    return f"{path}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def show(results: Evaluations, out: Console) -> None:
    """Print the results."""
    report.show([_table(results)], out)


def markdown(results: Evaluations) -> str:
    """Return the section of `RESULTS.md`."""
    return report.markdown("Evaluation: `python -m benchmarks evaluation`", [_table(results)])


def _table(results: Evaluations) -> report.ReportTable:
    rows = [
        (
            name,
            str(len(seconds)),
            report.range_of(seconds),
            f"{median(load.p99 for load in loads):.1f}",
            f"{median(load.rate for load in loads):,.0f}",
        )
        for name, seconds, loads in (
            ("without rules", results.plain, results.beside_plain),
            ("with rules", results.evaluated, results.beside_evaluated),
        )
    ]
    columns = ("promotions", "number", "seconds: min / median / max", "clients' p99, ms", "requests/s")
    note = (
        f"{results.rows:,} labelled rows, candidate and champion, while wrk sends requests over "
        f"{_CONNECTIONS} connections without a pause. The evaluation takes "
        f"{results.evaluation_seconds:.1f} s. "
        f"The clients' p99 beside it is {results.p99_ratio:.2f} times that beside promotions without rules. "
        f"Failed requests: {results.failed}."
    )
    return report.ReportTable("Evaluation under load", columns, tuple(rows), (note,))
