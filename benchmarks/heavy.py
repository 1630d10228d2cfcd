"""CPU-bound models: throughput, and the latency of the front under their load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import report, servers
from benchmarks.client import Latencies, Prober
from benchmarks.promotion import registry_client
from benchmarks.report import ReportTable, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

CPU_BOUND, FOREST = "cpu-bound", "forest"
REPLICAS = (1, 2)
_DESCRIPTIONS = {CPU_BOUND: "20 ms of CPU per call", FOREST: "forest of 300 trees"}
_TREES = 300
_CONNECTIONS = 16
_PROBES_PER_SECOND = 50


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One model under load in one round, and `/health` meanwhile."""

    model: str
    replicas: int
    predict: LoadResult
    health: Latencies


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements; `quiet` is `/health` without load."""

    runs: list[LoadRun]
    quiet: list[Latencies]


def measure(folder: Path, rounds: int, seconds: float) -> Results:
    """Measure each model with each number of model processes in turn, round by round.

    Raises:
        NotStarted: A service does not start.
    """
    registry = make_registry(folder)
    register(registry)
    results = Results([], [])
    with ExitStack() as stack:
        urls = {count: stack.enter_context(_serving(registry, folder, count)) for count in REPLICAS}
        prober = stack.enter_context(Prober())
        for _ in range(rounds):
            results.quiet.append(prober.start(f"{urls[1]}/health", _PROBES_PER_SECOND, seconds).result())
            for model in _DESCRIPTIONS:
                for count, url in urls.items():
                    results.runs.append(_run_load(model, count, url, folder, prober, seconds))
    return results


def show(results: Results, out: Console) -> None:
    """Print the results."""
    report.show([_table(results)], out)


def markdown(results: Results) -> str:
    """Return the section of RESULTS.md."""
    return report.markdown("Heavy models", [_table(results)])


def raw(results: Results) -> dict[str, Any]:
    """Return all measurements for JSON."""
    return asdict(results)


def failures(results: Results) -> int:
    """Return the total number of failed requests."""
    return sum(run.predict.failed for run in results.runs)


def _serving(registry: str, folder: Path, replicas: int) -> Any:
    place = folder / f"replicas-{replicas}"
    place.mkdir()
    models = ",".join(f"models:/{name}/Production" for name in _DESCRIPTIONS)
    env = {"SERVING_MODELS": models, "SERVING_REPLICAS": str(replicas)}
    return servers.serving(registry, place, env=env)


def _run_load(model: str, replicas: int, url: str, folder: Path, prober: Prober, seconds: float) -> LoadRun:
    predict = f"{url}/models/{model}/predict"
    drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=1)
    health = prober.start(f"{url}/health", _PROBES_PER_SECOND, seconds)
    runs = drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=seconds)
    return LoadRun(model, replicas, runs, health.result())


def register(registry: str) -> None:
    """Log both models in a registry and promote them."""
    client = registry_client(registry)
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    from training import log_model

    data = load_iris(as_frame=True)
    flowers = data.data.set_axis([*ROW], axis="columns")
    mlflow.set_experiment("iris")  # its artifacts are stored in `folder`
    mlflow.pyfunc.log_model(
        name=CPU_BOUND,
        python_model=str(Path(__file__).with_name("models") / "cpu_bound.py"),
        signature=infer_signature(flowers, [0.0]),
        input_example=flowers.head(),
        pip_requirements=["mlflow"],  # otherwise MLflow loads the model once more to infer them
        registered_model_name=CPU_BOUND,
    )
    forest = RandomForestClassifier(_TREES, n_jobs=1, random_state=0).fit(flowers, data.target)
    classes = [str(name) for name in data.target_names]
    # skops refuses trees from a file by default. This tree was trained here.
    trusted = ["sklearn.tree._tree.Tree"]
    log_model(forest, flowers, registered_model_name=FOREST, classes=classes, skops_trusted_types=trusted)
    for name in _DESCRIPTIONS:
        client.transition_model_version_stage(name, "1", "Production")


def _table(results: Results) -> ReportTable:
    lines: list[tuple[str, ...]] = [("–", "–", "–", "–", "–", *_health(results.quiet), "–")]
    for model, description in _DESCRIPTIONS.items():
        for count in REPLICAS:
            rounds = [run for run in results.runs if (run.model, run.replicas) == (model, count)]
            lines.append(
                (
                    description,
                    str(count),
                    *(
                        range_of([getattr(run.predict, value) for run in rounds])
                        for value in ("rate", "p50", "p99")
                    ),
                    *_health([run.health for run in rounds]),
                    str(sum(run.predict.failed for run in rounds)),
                )
            )
    columns = (
        "model",
        "processes",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "/health p99",
        "/health worst",
        "failed",
    )
    notes = (
        f"wrk with {_CONNECTIONS} connections; /health (ms) gets {_PROBES_PER_SECOND} requests/s from "
        "another process, in the first line without load. Min / median / max of the rounds.",
    )
    return ReportTable("CPU-bound models", columns, tuple(lines), notes)


def _health(rounds: Sequence[Latencies]) -> tuple[str, str]:
    return range_of([run.p99 for run in rounds]), range_of([run.worst for run in rounds])
