"""A training run: split the data, fit, score, plot and log."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split

from training import registry
from training.contract import ColumnKeywords
from training.errors import TrainingError, registry_errors
from training.model import Logged, log_model


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a training run; the same options and data produce the same model."""

    seed: int = 0
    test_size: float = 0.25
    regularization: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A data set with tables `data` and `target`, its estimator, and its metrics.

    `estimator` receives the strength of the regularization. `score` and `figure` receive the fitted model,
    the held-out rows and their targets.
    """

    name: str
    data: Any
    estimator: Callable[[float], Any]
    score: Callable[[Any, Any, Any], dict[str, float]]
    figure: Callable[[Any, Any, Any], Figure]
    figure_file: str
    inputs: Mapping[str, ColumnKeywords]
    classes: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """Result of a training run."""

    logged: Logged
    rows: int
    held_out: int
    metrics: Mapping[str, float]


def train(example: Example, options: Options) -> Trained:
    """Fit the model, score it on held-out rows, log it, and register it under the example's name.

    Inside `mlflow run` this continues the existing run. Otherwise it starts a run in the experiment with the
    example's name, or in the experiment from MLflow's environment variables.

    Raises:
        TrainingError: One side of the split has too few rows, or the registry fails or rejects the model.
    """
    x, x_held_out, y, y_held_out = _split(example, options)
    model = example.estimator(options.regularization).fit(x, y)
    metrics = example.score(model, x_held_out, y_held_out)
    experiment_id = _experiment(example.name)
    with registry_errors(mlflow.get_tracking_uri()), mlflow.start_run(None, experiment_id) as run:
        _log_params(run, options)
        mlflow.log_figure(example.figure(model, x_held_out, y_held_out), example.figure_file)
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
        raise TrainingError(f"the rows can't be split with these options: {error}") from error


def _experiment(name: str) -> str | None:
    variables = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    return None if any(os.environ.get(variable) for variable in variables) else registry.experiment(name)


def _log_params(run: mlflow.ActiveRun, options: Options) -> None:
    # `mlflow run` has already logged its parameters as text, and 1 conflicts with 1.0.
    new = {name: value for name, value in asdict(options).items() if name not in run.data.params}
    mlflow.log_params(new)
