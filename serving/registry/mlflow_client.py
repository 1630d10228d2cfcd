"""Creates MLflow's client and downloads artifacts with it, as the settings require."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.registry import bounded_http, resumable_downloads
from serving.registry.unity_catalog import model_uri
from serving.settings.groups import RegistrySettings
from serving.version import Version

# By default MLflow, and the SDK of Databricks, block for minutes on a registry that is away; the callers here
# retry themselves.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_DRIVERS = {
    # With psycopg 3, which SQLAlchemy prefers, MLflow compares integers with texts in some statements.
    "postgresql": ("psycopg2", "psycopg"),
    "postgres": ("psycopg2", "psycopg"),
    "mysql": ("MySQLdb", "pymysql"),
}
_DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
_NAMES = {"postgres": "postgresql", "MySQLdb": "mysqldb"}


def create(thread_name: str, settings: RegistrySettings) -> Any:
    """Return MLflow's client; the responses to threads of this name are bounded in size and time."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if settings.workspace:  # MLflow reads it from the environment only, and a flag is not there
        os.environ["MLFLOW_WORKSPACE"] = settings.workspace
    if settings.catalog:  # MLflow's repository of its artifacts creates a client without the URI
        os.environ.setdefault("MLFLOW_TRACKING_URI", settings.tracking_uri)
    from mlflow.tracking import MlflowClient

    bounded_http.install(thread_name)
    uris = _uris(settings)
    if not any(uri and uri.startswith(_DATABASES) for uri in uris):
        return MlflowClient(*uris)
    from mlflow.store.db import utils

    # MLflow repeats a failed connection for 100 s, even if the password is wrong.
    utils.MAX_RETRY_COUNT = 1
    return MlflowClient(*uris)


def download(version: Version, folder: Path, settings: RegistrySettings) -> Path:
    """Download the artifacts of a version into `folder`; return their path."""
    is_catalog = settings.catalog and version.version
    repository = partial(_catalog_repository if is_catalog else _artifact_repository, version, settings)
    return resumable_downloads.download(repository, folder, settings.download_stall_seconds)


def with_driver(uri: str) -> str:
    """Return a database URI with the name of an installed driver; return other URIs as they are.

    SQLAlchemy has one default driver for each database, which may be missing although another is installed.
    """
    scheme, separator, address = uri.partition("://")
    drivers = _DRIVERS.get(scheme, ())
    if not (separator and drivers):
        return uri
    driver = next(filter(find_spec, drivers), drivers[-1])
    return f"{_NAMES.get(scheme, scheme)}+{_NAMES.get(driver, driver)}://{address}"


def _uris(settings: RegistrySettings) -> tuple[str, str | None]:
    """Return the URIs of the tracking server and of the registry."""
    registry_uri = settings.registry_uri
    return with_driver(settings.tracking_uri), registry_uri and with_driver(registry_uri)


def _artifact_repository(version: Version, settings: RegistrySettings) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    tracking_uri, registry_uri = _uris(settings)
    return get_artifact_repository(version.location, tracking_uri=tracking_uri, registry_uri=registry_uri)


def _catalog_repository(version: Version, settings: RegistrySettings) -> Any:
    """Return the repository of a version's artifacts, with the credentials that the catalog lends for it.

    MLflow's function for downloads would add a file, which changes the digest of the artifacts.
    """
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.tracking._model_registry.utils import _resolve_registry_uri

    tracking_uri, registry_uri = _uris(settings)
    uris = {"tracking_uri": tracking_uri, "registry_uri": _resolve_registry_uri(registry_uri, tracking_uri)}
    return ModelsArtifactRepository(model_uri(version), **uris).repo
