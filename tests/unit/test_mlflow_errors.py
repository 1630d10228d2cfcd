"""Exceptions of MLflow and its libraries: the kind of each, and its remedy."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import psycopg2
import pymysql
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)
from google.auth.exceptions import DefaultCredentialsError
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from sqlalchemy.exc import DatabaseError, NoSuchModuleError, OperationalError

from serving.errors import (
    ArtifactsMissing,
    DiskError,
    DriverMissing,
    RegistryDenied,
    RegistryFault,
    RegistryRejected,
    RegistryUnavailable,
)
from serving.registry.mlflow_errors import classify, is_transient, map_exceptions

FOLDER = Path("/store/new")


def s3(code: str, status: int) -> ClientError:
    """Return botocore's error for a response of S3."""
    metadata = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(metadata, "GetObject")


def database(error: Exception) -> OperationalError:
    """Return SQLAlchemy's error for one of a driver."""
    wrapped = OperationalError("SELECT 1", None, error)
    wrapped.__cause__ = error
    return wrapped


def postgres(text: str) -> OperationalError:
    return database(psycopg2.OperationalError(text))


def mysql(number: int, text: str) -> OperationalError:
    return database(pymysql.err.OperationalError(number, text))


def bad_request(error: Exception) -> MlflowException:
    """Return MLflow's error for one of its database that is no failed connection."""
    wrapped = MlflowException(str(error), BAD_REQUEST)
    wrapped.__cause__ = DatabaseError("SELECT 1", None, error)
    return wrapped


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (postgres('FATAL:  password authentication failed for user "me"'), RegistryDenied, "password"),
        (postgres("fe_sendauth: no password supplied"), RegistryDenied, "password"),
        (postgres('FATAL:  role "me" does not exist'), RegistryDenied, "user"),
        (postgres('FATAL:  no pg_hba.conf entry for host "h"'), RegistryDenied, "user"),
        (postgres('FATAL:  database "x" does not exist'), RegistryRejected, "name of the database"),
        (postgres("connection refused"), RegistryUnavailable, ""),
        (mysql(1045, "Zugriff verweigert"), RegistryDenied, "password"),
        (mysql(1044, "Access denied for user 'me'@'h' to database 'x'"), RegistryDenied, "permissions"),
        (mysql(1049, "Unknown database 'x'"), RegistryRejected, "name of the database"),
        (mysql(2003, "Can't connect to MySQL server on 'h'"), RegistryUnavailable, ""),
        (NoSuchModuleError("Can't load plugin: sqlalchemy.dialects:postgresql.x"), DriverMissing, "driver"),
        (MlflowException("Detected out-of-date database schema"), RegistryFault, "mlflow db upgrade"),
        (MlflowException("an assertion failed"), RegistryFault, ""),
        (bad_request(sqlite3.DatabaseError("file is not a database")), RegistryUnavailable, ""),
        (RestException({"error_code": "BAD_REQUEST", "message": "x"}), RegistryRejected, ""),
        (RestException({"error_code": "INVALID_STATE", "message": "x"}), RegistryRejected, ""),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "x"}), RegistryFault, "MLflow server"),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"}), RegistryUnavailable, ""),
        (PermissionError(errno.EACCES, "denied", "/mnt/mlruns"), RegistryDenied, "permission"),
    ],
)
def test_error_of_the_registry_is_classified(
    error: Exception, kind: type[RegistryUnavailable], remedy: str
) -> None:
    found, shown = classify(error)
    assert found is kind
    assert remedy in shown
    assert bool(remedy) == bool(shown)
    assert is_transient(error) == (kind in (RegistryUnavailable, RegistryFault))


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (s3("AccessDenied", 403), RegistryDenied, "list and read the version's files"),
        (s3("ExpiredToken", 400), RegistryDenied, "AWS_ACCESS_KEY_ID"),
        (s3("InvalidToken", 400), RegistryDenied, "AWS_ACCESS_KEY_ID"),
        (s3("RequestTimeTooSkewed", 403), RegistryDenied, "clock"),
        (s3("NoSuchBucket", 404), ArtifactsMissing, "MLFLOW_S3_ENDPOINT_URL"),
        (s3("InternalError", 500), RegistryFault, "the log of the artifact store"),
        (s3("SlowDown", 503), RegistryUnavailable, ""),
        (NoCredentialsError(), RegistryDenied, "AWS_ACCESS_KEY_ID"),
        (PartialCredentialsError(provider="env", cred_var="x"), RegistryDenied, "AWS_ACCESS_KEY_ID"),
        (DefaultCredentialsError("no credentials"), RegistryDenied, "credentials"),
        (EndpointConnectionError(endpoint_url="http://h"), RegistryUnavailable, ""),
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "SERVING_STORE_DIR"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskError, "SERVING_STORE_DIR"),
        (PermissionError(errno.EACCES, "denied", str(FOLDER / "x")), DiskError, "SERVING_STORE_DIR"),
        (PermissionError(errno.EACCES, "denied", "/mnt/mlruns"), RegistryDenied, "permission"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/mnt/x"), ArtifactsMissing, "location"),
    ],
)
def test_error_of_the_artifact_store_is_classified(
    error: Exception, kind: type[RegistryUnavailable], remedy: str
) -> None:
    found, shown = classify(error, FOLDER)
    assert found is kind
    assert remedy in shown
    assert "MLFLOW_TRACKING_URI" not in shown
    assert "edit its tags" not in shown


def test_refused_socket_is_no_missing_permission() -> None:
    error = ConnectionError("the connection failed")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    assert classify(error) == (RegistryUnavailable, "")


def test_message_of_a_download_names_the_artifact_store() -> None:
    with (
        pytest.raises(
            RegistryDenied, match="the artifacts of iris: the artifact store denies access: Client"
        ),
        map_exceptions("the artifacts of iris", download=FOLDER),
    ):
        raise s3("AccessDenied", 403)
