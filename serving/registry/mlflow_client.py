"""Creates MLflow's client and downloads artifacts with it, as the settings require."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.registry import artifact_files, bounded_http, resumable_downloads
from serving.registry.artifact_policy import local_folder
from serving.registry.download_progress import DownloadProgress
from serving.registry.unity_catalog import model_uri, split_file_uri
from serving.settings.groups import RegistrySettings
from serving.settings.unity_catalog import Catalog
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


def download(
    version: Version,
    folder: Path,
    check: Callable[[Path], None],
    settings: RegistrySettings,
    progress: DownloadProgress,
) -> Path:
    """Download or copy the artifacts of a version into `folder`; return their path.

    `check` raises if a source on this machine, given by its path without links, is not allowed.
    """
    is_remote = settings.catalog is Catalog.DATABRICKS
    if not is_remote and (source := local_folder(version.location)):
        source = source.resolve(strict=True)
        check(source)
        return artifact_files.copy(source, folder, settings.max_model_bytes)
    if settings.catalog and version.version:
        repository = partial(_catalog_repository, model_uri(version), settings)
    else:
        repository = partial(_artifact_repository, version.location, settings)
    path = resumable_downloads.download(repository, folder, progress)
    artifact_files.check_files(folder.resolve(), settings.max_model_bytes)
    return path


def download_file(
    uri: str, location: str, folder: Path, settings: RegistrySettings, progress: DownloadProgress
) -> Path:
    """Download the file to which a URI leads into `folder`, unless it is on this machine; return its path.

    `location` is that of the file in its artifact store.
    """
    from mlflow.tracking import artifact_utils

    if settings.catalog and (parts := split_file_uri(uri)):
        repository, path = partial(_catalog_repository, parts[0], settings), parts[1]
    elif local := local_folder(location):
        return local.resolve(strict=True)
    else:
        utils: Any = artifact_utils
        root, path = utils._get_root_uri_and_artifact_path(location)
        repository = partial(_artifact_repository, root, settings)
    return resumable_downloads.download(repository, folder, progress, path)


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


def _artifact_repository(location: str, settings: RegistrySettings) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    tracking_uri, registry_uri = _uris(settings)
    return get_artifact_repository(location, tracking_uri=tracking_uri, registry_uri=registry_uri)


def _catalog_repository(uri: str, settings: RegistrySettings) -> Any:
    """Return the repository of a version's artifacts, with the credentials that the catalog lends for it.

    Its own download would add a file, which changes the digest of the artifacts.
    """
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.tracking._model_registry.utils import _resolve_registry_uri

    tracking_uri, registry_uri = _uris(settings)
    uris = {"tracking_uri": tracking_uri, "registry_uri": _resolve_registry_uri(registry_uri, tracking_uri)}
    return ModelsArtifactRepository(uri, **uris)
