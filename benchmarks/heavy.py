"""Models that keep the cores busy: how fast they answer, and whether the front still answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import service, sheet
from benchmarks.client import Probed, Prober
from benchmarks.load import Measured, drive
from benchmarks.promotion import registry_client
from benchmarks.sheet import Sheet, range_of
from benchmarks.throughput import ROW, make_registry

BURNER, FOREST = "burner", "forest"
REPLICAS = (1, 2)
_TOLD = {BURNER: "20 ms of CPU a call", FOREST: "forest of 300 trees"}
_TREES = 300
_CONNECTIONS = 16
_PROBES_A_SECOND = 50


@dataclass(frozen=True, slots=True)
class Driven:
    """One model under load in one round, and `/health` meanwhile."""

    model: str
    replicas: int
    predict: Measured
    health: Probed


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured; `quiet` is `/health` while nothing else is asked."""

    driven: list[Driven]
    quiet: list[Probed]


def measure(folder: Path, rounds: int, seconds: float) -> Found:
    """Drive each model with each number of model processes in turn, round by round.

    Raises:
        NotStarted: a service does not start.
    """
    registry = make_registry(folder)
    register(registry)
    found = Found([], [])
    with ExitStack() as stack:
        urls = {count: stack.enter_context(_serving(registry, folder, count)) for count in REPLICAS}
        prober = stack.enter_context(Prober())
        for _ in range(rounds):
            found.quiet.append(prober.start(f"{urls[1]}/health", _PROBES_A_SECOND, seconds).result())
            for model in _TOLD:
                for count, url in urls.items():
                    found.driven.append(_drive(model, count, url, folder, prober, seconds))
    return found


def show(found: Found, out: Console) -> None:
    """Print what was found."""
    sheet.show([_sheet(found)], out)


def markdown(found: Found) -> str:
    """The section of RESULTS.md."""
    return sheet.markdown("Heavy models", [_sheet(found)])


def raw(found: Found) -> dict[str, Any]:
    """All measurements, for JSON."""
    return asdict(found)


def failures(found: Found) -> int:
    """How many requests failed in all."""
    return sum(each.predict.failed for each in found.driven)


def _serving(registry: str, folder: Path, replicas: int) -> Any:
    place = folder / f"replicas-{replicas}"
    place.mkdir()
    models = ",".join(f"models:/{name}/Production" for name in _TOLD)
    env = {"SERVING_MODELS": models, "SERVING_REPLICAS": str(replicas)}
    return service.serving(registry, place, env=env)


def _drive(model: str, replicas: int, url: str, folder: Path, prober: Prober, seconds: float) -> Driven:
    predict = f"{url}/models/{model}/predict"
    drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=1)
    health = prober.start(f"{url}/health", _PROBES_A_SECOND, seconds)
    driven = drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=seconds)
    return Driven(model, replicas, driven, health.result())


def register(registry: str) -> None:
    """Log both models in a registry, and promote them."""
    client = registry_client(registry)
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    from training import log_model

    data = load_iris(as_frame=True)
    flowers = data.data.set_axis([*ROW], axis="columns")
    mlflow.set_experiment("iris")  # whose artifacts are kept in `folder`
    mlflow.pyfunc.log_model(
        name=BURNER,
        python_model=str(Path(__file__).with_name("burner.py")),
        signature=infer_signature(flowers, [0.0]),
        input_example=flowers.head(),
        pip_requirements=["mlflow"],  # else MLflow loads the model once more to find out
        registered_model_name=BURNER,
    )
    forest = RandomForestClassifier(_TREES, n_jobs=1, random_state=0).fit(flowers, data.target)
    classes = [str(name) for name in data.target_names]
    # skops takes no tree from a file without being told to; this one was grown here.
    trusted = ["sklearn.tree._tree.Tree"]
    log_model(forest, flowers, registered_model_name=FOREST, classes=classes, skops_trusted_types=trusted)
    for name in _TOLD:
        client.transition_model_version_stage(name, "1", "Production")


def _sheet(found: Found) -> Sheet:
    lines: list[tuple[str, ...]] = [("–", "–", "–", "–", "–", *_health(found.quiet), "–")]
    for model, told in _TOLD.items():
        for count in REPLICAS:
            rounds = [each for each in found.driven if (each.model, each.replicas) == (model, count)]
            lines.append(
                (
                    told,
                    str(count),
                    *(
                        range_of([getattr(each.predict, value) for each in rounds])
                        for value in ("rate", "p50", "p99")
                    ),
                    *_health([each.health for each in rounds]),
                    str(sum(each.predict.failed for each in rounds)),
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
        f"wrk with {_CONNECTIONS} connections; /health (in ms) is asked {_PROBES_A_SECOND} times a second by "
        "a process of its own, the first line while nothing else is. Min / median / max of the rounds.",
    )
    return Sheet("Models that keep the cores busy", columns, tuple(lines), notes)


def _health(rounds: Sequence[Probed]) -> tuple[str, str]:
    return range_of([each.p99 for each in rounds]), range_of([each.worst for each in rounds])
