"""One training run: a data set is split, learned, scored, pictured and logged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split

from training import registry
from training.contract import Words
from training.errors import TrainingError, registry_errors
from training.model import Logged, log_model


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may turn: the same options and data give the same model."""

    seed: int = 0
    test_size: float = 0.25
    regularization: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A data set with tables `data` and `target`, what learns it, and what is told about it.

    `estimator` is handed the strength of regularization; `score` and `picture` the fitted model,
    the held-out rows and what is right for them.
    """

    name: str
    data: Any
    estimator: Callable[[float], Any]
    score: Callable[[Any, Any, Any], dict[str, float]]
    picture: Callable[[Any, Any, Any], Figure]
    picture_name: str
    inputs: Mapping[str, Words]
    classes: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training run."""

    logged: Logged
    rows: int
    held_out: int
    metrics: Mapping[str, float]


def train(example: Example, options: Options) -> Trained:
    """Fit, score on rows that were held out, log, and register under the example's name.

    Within `mlflow run`, its run is continued; otherwise the run goes to the experiment of the
    example's name, or to the one that MLflow's environment variables name.

    Raises:
        TrainingError: too few rows are left on one side, or the registry can't be used or refuses.
    """
    x, x_held_out, y, y_held_out = _split(example, options)
    model = example.estimator(options.regularization).fit(x, y)
    metrics = example.score(model, x_held_out, y_held_out)
    experiment_id = _experiment(example.name)
    with registry_errors(mlflow.get_tracking_uri()), mlflow.start_run(None, experiment_id) as run:
        _log_params(run, options)
        mlflow.log_figure(example.picture(model, x_held_out, y_held_out), example.picture_name)
        logged = log_model(
            model, x, registered_model_name=example.name, classes=example.classes, inputs=example.inputs
        )
        mlflow.log_metrics(metrics, model_id=logged.model_id)
    return Trained(logged, len(x), len(x_held_out), metrics)


def _split(example: Example, options: Options) -> Any:
    x, y = example.data.data, example.data.target
    shares = {"test_size": options.test_size, "random_state": options.seed}
    try:
        return train_test_split(x, y, **shares, stratify=y if example.classes else None)
    except ValueError as error:
        raise TrainingError(f"the rows can't be split so: {error}") from error


def _experiment(name: str) -> str | None:
    chosen = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    return None if any(os.environ.get(each) for each in chosen) else registry.experiment(name)


def _log_params(run: mlflow.ActiveRun, options: Options) -> None:
    # `mlflow run` has logged its own as they were typed: 1 and 1.0 can't both be logged.
    new = {name: value for name, value in asdict(options).items() if name not in run.data.params}
    mlflow.log_params(new)
