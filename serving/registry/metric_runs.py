"""Write metrics to runs in MLflow: to a version's training run, or to a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serving.errors import ReferenceNotFound
from serving.registry.mlflow_errors import map_exceptions

TAG = "serving.quality"
"""The tag of a quality run; its value names the model and the version."""
_DEFAULT_EXPERIMENT = "0"


@dataclass(frozen=True, slots=True)
class QualityRun:
    """The run that holds the quality of one version; `run_id` is its training run, if there is one."""

    model: str
    version: str
    run_id: str | None


def log_metrics(
    run_id: str, model_id: str | None, metrics: Mapping[str, float], step: int, at: int, client: Any
) -> None:
    """Log metrics to a run, and to the model that it logged, at a time in milliseconds since the epoch.

    Raises:
        ReferenceNotFound: the run does not exist.
        RegistryUnavailable: the tracking server did not accept them.
    """
    with map_exceptions(f"run {run_id}"):
        from mlflow.entities import Metric

        points = [Metric(name, value, at, step, model_id) for name, value in metrics.items()]
        for start in range(0, len(points), _MAX_METRICS):
            client.log_batch(run_id, points[start : start + _MAX_METRICS])


_MAX_METRICS = 1000
"""MLflow's limit for one request."""


def log_quality(target: QualityRun, metrics: Mapping[str, float], at: int, client: Any) -> None:
    """Log metrics to the run of a version's quality, which is created in the experiment of its training run.

    MLflow stores identical points once, so a repeated call is harmless.

    Raises:
        RegistryUnavailable: the tracking server did not accept them.
    """
    what = f"the quality run of {target.model} version {target.version}"
    with map_exceptions(what, may_be_missing=False):
        experiment = _experiment(target, client)
        run_id = _find(target, experiment, client) or _create(target, experiment, client)
    log_metrics(run_id, None, metrics, 0, at, client)


def _experiment(target: QualityRun, client: Any) -> str:
    if target.run_id:
        with suppress(ReferenceNotFound), map_exceptions(f"run {target.run_id}"):
            return str(client.get_run(target.run_id).info.experiment_id)
    return _DEFAULT_EXPERIMENT


def _name(target: QualityRun) -> str:
    return f"{target.model}/{target.version}"


def _find(target: QualityRun, experiment: str, client: Any) -> str | None:
    """Return the oldest run of a version: two fronts may have created one each at the same moment."""
    condition = f"tags.`{TAG}` = {_quote(_name(target))}"
    runs = client.search_runs([experiment], condition, max_results=1, order_by=["start_time ASC"])
    return str(runs[0].info.run_id) if runs else None


def _quote(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def _create(target: QualityRun, experiment: str, client: Any) -> str:
    name = f"quality of {target.model} version {target.version}"
    run = client.create_run(experiment, tags={TAG: _name(target)}, run_name=name)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
