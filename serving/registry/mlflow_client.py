"""Creates MLflow's client, with the service's defaults and the database drivers that are installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from serving.registry import bounded_http

# By default MLflow blocks for minutes on a registry that is away; the callers here retry themselves.
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_DRIVERS = {
    # With psycopg 3, which SQLAlchemy prefers, MLflow compares integers with texts in some statements.
    "postgresql": ("psycopg2", "psycopg"),
    "postgres": ("psycopg2", "psycopg"),
    "mysql": ("MySQLdb", "pymysql"),
}
_NAMES = {"postgres": "postgresql", "MySQLdb": "mysqldb"}


def create_client(thread_name: str, tracking_uri: str, registry_uri: str | None) -> Any:
    """Return MLflow's client; the responses to threads of this name are bounded in size and time."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    bounded_http.install(thread_name)
    return MlflowClient(with_driver(tracking_uri), registry_uri and with_driver(registry_uri))


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
