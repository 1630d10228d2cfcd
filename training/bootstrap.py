"""Whether there is a first version to serve."""

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
_PATIENCE_SECONDS = 3


def needed() -> bool:
    """Whether no version of iris is in Production.

    Raises:
        TrainingError: the registry can't be asked.
    """
    uri = _registry_uri()
    file = registry.database(uri)
    if file and not file.exists():
        return True
    return not (_known_at_once(uri) or registry.staged(NAME, STAGE))


def _registry_uri() -> str:
    # As `mlflow.get_registry_uri` has it, which can't be asked without importing MLflow.
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return uri or registry.DEFAULT_URI


def _known_at_once(uri: str) -> bool:
    """A look that takes milliseconds where MLflow takes seconds to import.

    Every start but the first ends with its yes. Its no may mean anything (another schema, a login,
    a server that is away), so that MLflow is asked then.
    """
    try:
        file = registry.database(uri)
        return _on_server(uri) if file is None else _in_database(file)
    except (OSError, ValueError, LookupError, sqlite3.Error):
        return False


def _in_database(file: Path) -> bool:
    query = "SELECT 1 FROM model_versions WHERE name = ? AND current_stage = ?"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, (NAME, STAGE)).fetchone() is not None


def _on_server(uri: str) -> bool:
    query = urlencode({"filter": f"name='{NAME}'"})
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/model-versions/search?{query}"
    with urlopen(url, timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310  # the user's own registry
        found = json.load(answer).get("model_versions", [])
    return any(version["current_stage"] == STAGE for version in found)
