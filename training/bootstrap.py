"""Check whether the registry lacks a first version to serve."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from training import registry

NAME, STAGE = "iris", "Production"
_TIMEOUT_SECONDS = 3


def is_needed() -> bool:
    """Return whether no version of iris is in Production.

    Raises:
        TrainingError: The registry is not available.
    """
    uri = _registry_uri()
    file = registry.database(uri)
    if file and not file.exists():
        return True
    return not (_has_version_fast(uri) or registry.versions_in_stage(NAME, STAGE))


def _registry_uri() -> str:
    # The rule of `mlflow.get_registry_uri`, without the import of MLflow.
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return uri or registry.DEFAULT_URI


def _has_version_fast(uri: str) -> bool:
    """Return whether a version is known to exist, in milliseconds: importing MLflow takes seconds.

    After the first start the result is true. False can have any reason (another schema, a login, a server
    that is down), so that the caller has to check through MLflow.
    """
    try:
        file = registry.database(uri)
        return _is_on_server(uri) if file is None else _is_in_database(file)
    except (OSError, ValueError, LookupError, sqlite3.Error):
        return False


def _is_in_database(file: Path) -> bool:
    query = "SELECT 1 FROM model_versions WHERE name = ? AND current_stage = ?"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, (NAME, STAGE)).fetchone() is not None


def _is_on_server(uri: str) -> bool:
    query = urlencode({"filter": f"name='{NAME}'"})
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/model-versions/search?{query}"
    with urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - the user's own registry
        versions = json.load(response).get("model_versions", [])
    return any(version["current_stage"] == STAGE for version in versions)
