"""Registry operations of training: artifact location, promotion, aliases."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.errors import TrainingError, registry_errors

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
STAGES = ("Production", "Staging", "Archived", "None")
# MLflow archives previous versions in these stages only.
_ACTIVE_STAGES = STAGES[:2]
_DRIVERS = {
    # With psycopg 3, which SQLAlchemy prefers, MLflow fails to archive versions.
    "postgresql": ("postgresql", ("psycopg2", "psycopg")),
    "postgres": ("postgresql", ("psycopg2", "psycopg")),
    "mysql": ("mysql", ("MySQLdb", "pymysql")),
}
"""SQLAlchemy's name of each database, and the modules of its drivers, best first."""


def use_installed_drivers() -> None:
    """Name an installed driver in the URIs of the registry's database, which MLflow reads from variables."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        if uri := os.environ.get(variable):
            os.environ[variable] = with_driver(uri)


def with_driver(uri: str) -> str:
    """Return a database URI with the name of an installed driver; return other URIs as they are."""
    scheme, separator, address = uri.partition("://")
    database_name, drivers = _DRIVERS.get(scheme, ("", ()))
    driver = next(filter(find_spec, drivers), None)
    return f"{database_name}+{driver.lower()}{separator}{address}" if driver else uri


def database(uri: str) -> Path | None:
    """Return the file of a SQLite registry; None for any other registry."""
    prefix, found, path = uri.partition("sqlite:///")
    return Path(path).absolute() if found and not prefix else None


def artifact_folder(uri: str) -> str | None:
    """Return the artifact folder of a SQLite registry: `mlruns` next to it, for every working folder.

    Return None for any other registry, which has its own artifact location.
    """
    if (file := database(uri)) is None:
        return None
    return str(file.parent if file.parent.name == "mlruns" else file.parent / "mlruns")


def experiment(name: str) -> str:
    """Return the id of the experiment with this name; create the experiment if necessary.

    Raises:
        TrainingError: The registry is not available.
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
    """Put a version into a stage, and archive the other versions there.

    With two versions in one stage, MLflow resolves the stage to the higher number, even if that is the old
    one.

    Returns:
        The versions that were archived.

    Raises:
        TrainingError: The version does not exist, or the registry is not available.
    """
    with _client() as client, _without_stage_warning():
        archive = stage in _ACTIVE_STAGES
        previous = _versions(client, name, stage) if archive else []
        client.transition_model_version_stage(name, version, stage, archive)
        return [other for other in previous if other != version]


def set_alias(name: str, version: str, alias: str) -> None:
    """Move an alias to a version; raise as `promote` does."""
    with _client() as client:
        client.set_registered_model_alias(name, alias, version)


def versions_in_stage(name: str, stage: str) -> list[str]:
    """Return the versions in a stage; raise as `promote` does."""
    with _client() as client:
        return _versions(client, name, stage)


@contextmanager
def _client() -> Iterator[Any]:
    import mlflow

    uri = mlflow.get_registry_uri()
    file = database(uri)
    if file and not file.exists():
        # MLflow would create an empty database there, and then report an unknown version.
        raise TrainingError(f"there is no registry at {file}: train first, or set MLFLOW_TRACKING_URI")
    with registry_errors(uri):
        yield mlflow.MlflowClient()


def _versions(client: Any, name: str, stage: str) -> list[str]:
    found = client.search_model_versions(f"name='{name}'")
    return [str(version.version) for version in found if version.current_stage == stage]


@contextmanager
def _without_stage_warning() -> Iterator[None]:
    """Suppress MLflow's warning that stages are deprecated: the user has chosen to use them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*transition_model_version_stage", FutureWarning)
        yield
