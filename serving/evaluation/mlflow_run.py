"""Records an evaluation as an MLflow run: its metrics, rules, confusion matrix and plot."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from serving.errors import RegistryError
from serving.evaluation.evidence import Evidence
from serving.evaluation.statistics_process import plot
from serving.registry.client import RegistryClient
from serving.text import shorten
from serving.version import Version

log = logging.getLogger("serving.evaluation")
_DEFAULT_EXPERIMENT = "0"
_MAX_PARAM_LENGTH = 500


async def record(registry: RegistryClient, version: Version, evidence: Evidence) -> str | None:
    """Record an evaluation in the experiment of the version's run; return the id of the new run.

    A failure is logged and never affects a promotion; the result is then None.
    """
    subject = f"the run of the evaluation of {version}"
    try:
        return await registry.use_client(subject, lambda client: _log(client, version, evidence))
    except RegistryError as error:
        message = "the evaluation of %s could not be recorded as a run: %s"
        log.warning(message, version, error, extra=version.in_logs)
        return None


async def add_plot(registry: RegistryClient, version: Version, evidence: Evidence, run_id: str) -> None:
    """Draw the confusion matrix and add it to the run; a failure is logged."""
    try:
        image = await plot(evidence.statistics, f"{version} on {evidence.rows:,} labelled rows")
        if image:
            await registry.use_client(f"run {run_id}", lambda client: _log_image(client, run_id, image))
    except (RegistryError, OSError) as error:
        message = "the confusion matrix of %s could not be recorded: %s"
        log.warning(message, version, error, extra=version.in_logs)


def _log(client: Any, version: Version, evidence: Evidence) -> str:
    from mlflow.entities import Metric, Param

    parent = _run(client, version)
    experiment = parent.info.experiment_id if parent else _DEFAULT_EXPERIMENT
    tags = {"serving.model": version.name, "serving.version": version.label}
    tags |= {"mlflow.parentRunId": parent.info.run_id} if parent else {}
    name = f"evaluation of {version}"
    run_id = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
    statistics, at = evidence.statistics, int(time.time() * 1000)
    metrics = {**statistics.metrics, "rows": float(evidence.rows), "passed": float(evidence.passed)}
    metrics |= {f"champion.{name}": value for name, value in statistics.champion_metrics.items()}
    params = {
        "source": evidence.source,
        "digest": evidence.data_digest,
        "champion": str(evidence.champion),
        "confidence": str(evidence.confidence),
    }
    client.log_batch(
        run_id,
        [Metric(name, value, at, 0) for name, value in metrics.items()],
        [Param(name, shorten(value, _MAX_PARAM_LENGTH)) for name, value in params.items()],
    )
    client.log_dict(run_id, _facts(evidence), "evaluation.json")
    client.set_terminated(run_id)
    return run_id


def _run(client: Any, version: Version) -> Any:
    """Return the run that logged the version; None if there is none, or it was deleted."""
    if not version.run_id:
        return None
    try:
        run = client.get_run(version.run_id)
    except Exception:  # it may belong to another tracking server
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _facts(evidence: Evidence) -> dict[str, Any]:
    statistics = evidence.statistics
    sentences = [result.sentence for result in evidence.results]
    facts = {**evidence.facts(), "sentences": sentences}
    if statistics.confusion:
        facts["confusion"] = {"classes": statistics.classes, "actual_by_predicted": statistics.confusion}
    return facts


def _log_image(client: Any, run_id: str, image: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "confusion_matrix.png"
        path.write_bytes(image)
        client.log_artifact(run_id, str(path))
