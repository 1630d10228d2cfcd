"""The registry as training sees it: where its artifacts go, and what is promoted in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import TrainingError, registry_errors

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
STAGES = ("Production", "Staging", "Archived", "None")
# Only in these does MLflow archive what was there before.
_ACTIVE_STAGES = STAGES[:2]


def database(uri: str) -> Path | None:
    """The file of a SQLite registry; None for any other."""
    prefix, found, path = uri.partition("sqlite:///")
    return Path(path).absolute() if found and not prefix else None


def artifact_folder(uri: str) -> str | None:
    """Where a SQLite registry's artifacts belong: `mlruns` beside it, whatever the working folder.

    None for any other registry, which has its own place for them.
    """
    if (file := database(uri)) is None:
        return None
    return str(file.parent if file.parent.name == "mlruns" else file.parent / "mlruns")


def experiment(name: str) -> str:
    """The id of the experiment of that name, which is made where there is none.

    Raises:
        TrainingError: the registry can't be used.
    """
    import mlflow

    uri = mlflow.get_tracking_uri()
    with registry_errors(uri):
        client = mlflow.MlflowClient()
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        folder = artifact_folder(uri)
        location = None if folder is None else f"{folder}/{name}"
        return str(client.create_experiment(name, artifact_location=location))


def promote(name: str, version: str, stage: str) -> list[str]:
    """Put a version into a stage, and archive what else is there.

    Two versions in one stage would leave the higher number in force, whichever was meant.

    Returns:
        The versions that were archived.

    Raises:
        TrainingError: there is no such version, or the registry can't be used.
    """
    with _client() as client, _without_stage_warning():
        archive = stage in _ACTIVE_STAGES
        before = _versions(client, name, stage) if archive else []
        client.transition_model_version_stage(name, version, stage, archive)
        return [other for other in before if other != version]


def point(name: str, version: str, alias: str) -> None:
    """Let an alias mean this version, and no other any more; raises as `promote` does."""
    with _client() as client:
        client.set_registered_model_alias(name, alias, version)


def staged(name: str, stage: str) -> list[str]:
    """The versions that are in a stage; raises as `promote` does."""
    with _client() as client:
        return _versions(client, name, stage)


@contextmanager
def _client() -> Iterator[Any]:
    import mlflow

    uri = mlflow.get_registry_uri()
    file = database(uri)
    if file and not file.exists():
        # MLflow would make an empty one there, and then know no version.
        raise TrainingError(f"there is no registry at {file}: train first, or set MLFLOW_TRACKING_URI")
    with registry_errors(uri):
        yield mlflow.MlflowClient()


def _versions(client: Any, name: str, stage: str) -> list[str]:
    found = client.search_model_versions(f"name='{name}'")
    return [str(each.version) for each in found if each.current_stage == stage]


@contextmanager
def _without_stage_warning() -> Iterator[None]:
    """That MLflow may drop stages one day is no news to the person who promotes to one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*transition_model_version_stage", FutureWarning)
        yield
