"""Creates MLflow's client and downloads artifacts with it, as the settings require."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from serving.registry.unity_catalog import model_uri
from serving.settings.groups import RegistrySettings
from serving.version import Version

# By default MLflow, and the SDK of Databricks, block for minutes on a registry that is away; the callers here
# retry themselves.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def create(settings: RegistrySettings) -> Any:
    """Return MLflow's client for these settings; the first import takes seconds."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if settings.workspace:  # MLflow reads it from the environment only, and a flag is not there
        os.environ["MLFLOW_WORKSPACE"] = settings.workspace
    if settings.catalog:  # MLflow's repository of its artifacts creates a client without the URI
        os.environ.setdefault("MLFLOW_TRACKING_URI", settings.tracking_uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(settings.tracking_uri, settings.registry_uri)


def download(version: Version, folder: Path, settings: RegistrySettings) -> Path:
    """Download the artifacts of a version into `folder`; return their path."""
    tracking_uri, registry_uri = settings.tracking_uri, settings.registry_uri
    if settings.catalog and version.version:
        return _download_from_catalog(version, folder, tracking_uri, registry_uri)
    from mlflow.artifacts import download_artifacts

    uris = {"tracking_uri": tracking_uri, "registry_uri": registry_uri}
    return Path(download_artifacts(artifact_uri=version.location, dst_path=str(folder), **uris))


def _download_from_catalog(
    version: Version, folder: Path, tracking_uri: str, registry_uri: str | None
) -> Path:
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.tracking._model_registry.utils import _resolve_registry_uri

    resolved = _resolve_registry_uri(registry_uri, tracking_uri)
    # MLflow's function for downloads would add a file, which changes the digest of the artifacts.
    uris = {"tracking_uri": tracking_uri, "registry_uri": resolved}
    folder.mkdir()
    repository = ModelsArtifactRepository(model_uri(version), **uris).repo
    return Path(repository.download_artifacts("", str(folder)))  # type: ignore[no-untyped-call]
