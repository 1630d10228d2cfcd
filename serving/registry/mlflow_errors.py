"""Maps exceptions of MLflow and its libraries to this package's errors, by their cause.

The messages name the cause and the remedy. They contain neither an address nor a page of a server, because
clients read some of them: the `detail` of an error has both, for the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serving.errors import (
    ArtifactsMissing,
    DiskError,
    DriverMissing,
    ReferenceNotFound,
    RegistryDenied,
    RegistryFault,
    RegistryRejected,
    RegistryUnavailable,
    ServingError,
)
from serving.registry.address_masking import public
from serving.registry.error_causes import Causes
from serving.telemetry.redaction import redact
from serving.text import install_command, shorten

_MAX_LENGTH, _MAX_DETAIL_LENGTH = 400, 4000
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_AWAY = {
    *("TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"),
    *("DEADLINE_EXCEEDED", "CANCELLED"),
}
_REJECTED = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"),
    *("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS", "RESOURCE_CONFLICT", "ABORTED", "NOT_IMPLEMENTED"),
}
_RemedyKey = int | str | None
_Kind = tuple[type[RegistryUnavailable], _RemedyKey]
_S3_CODES: Mapping[str | None, _RemedyKey] = {
    "ExpiredToken": 401,
    "InvalidToken": 401,
    "RequestTimeTooSkewed": "clock",
}
"""The keys of the remedies for errors that S3 also reports with the status 400."""
_EXTRAS = {
    "boto3": "s3",
    "botocore": "s3",
    "google.cloud": "gcs",
    "azure": "azure",
    "pymysql": "mysql",
    "MySQLdb": "mysql",
    "psycopg2": "postgres",
    "psycopg": "postgres",
}
_HEADER = re.compile(r"Invalid Host header", re.IGNORECASE)
_OLD_SCHEMA = "out-of-date database schema"
_NO_VALID_RESPONSE = "API request to"
"""MLflow's client reports invalid responses, and exceptions that it does not know, as internal errors."""
_REMEDIES: Mapping[_RemedyKey, str] = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    403: "give the service's user the permission to read the model, and to edit its tags",
    "certificate": "set MLFLOW_TRACKING_SERVER_CERT_PATH to the CA certificate of the server",
    "host": "add the host name to --allowed-hosts of the MLflow server",
    404: "check the address and its path prefix in MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI",
    "database user": "check the user and the password in the URI of the database, and the user's permissions",
    "database": "check the name of the database in its URI",
    "schema": "make a backup of the database, then run mlflow db upgrade",
    "dialect": "install the driver that the URI of the database names, or correct the URI",
    "clock": "set the clock of this machine",
    500: "see the log of the MLflow server",
}
_ARTIFACT_REMEDIES: Mapping[_RemedyKey, str] = {
    401: "give the service valid credentials for the artifact store, such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY for S3, or those of the MLflow server if it proxies the artifacts",
    403: "give the service's account the permission to list and read the version's files",
    "certificate": "give the service the CA certificate of the artifact store, such as in AWS_CA_BUNDLE for "
    "S3, or in MLFLOW_TRACKING_SERVER_CERT_PATH if the MLflow server proxies the artifacts",
    "host": _REMEDIES["host"],
    404: "check that the location of the version's artifacts exists, and the address of the artifact store, "
    "such as MLFLOW_S3_ENDPOINT_URL",
    "disk": "free space on the disk of SERVING_STORE_DIR, and let the service write there",
    "clock": _REMEDIES["clock"],
    500: "see the log of the artifact store",
}


@contextmanager
def map_exceptions(
    subject: str, *, may_be_missing: bool = True, download: Path | None = None
) -> Iterator[None]:
    """Map exceptions in the block to `RegistryError` and its subclasses.

    Args:
        subject: What the block reads or writes, at the beginning of the message.
        may_be_missing: Whether the registry may not know the subject.
        download: The local folder into which the block downloads artifacts; None: it calls the registry.
    """
    try:
        yield
    except ServingError:
        raise
    except Exception as error:  # MLflow does not wrap those of its libraries: HTTP, SQL, OS, JSON
        text = one_line(error)
        reason = shorten(public(text), _MAX_LENGTH)
        if may_be_missing and getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise ReferenceNotFound(f"{subject} names nothing in the registry ({reason})") from error
        kind, remedy = classify(error, download)
        message = f"{type(error).__name__}: {reason}" + (f"; {remedy}" if remedy else "")
        if download:
            message = f"{kind.summary('the artifact store')}: {message}"
        raise kind(f"{subject}: {message}", detail=shorten(text, _MAX_DETAIL_LENGTH)) from error


def classify(error: BaseException, download: Path | None = None) -> tuple[type[RegistryUnavailable], str]:
    """Return the class of an exception of MLflow or its libraries, and the remedy if one is known."""
    causes = Causes(error)
    if module := causes.missing_module:
        return DriverMissing, _how_to_install(module)
    kind, key = _kind(causes, download)
    return kind, (_ARTIFACT_REMEDIES if download else _REMEDIES).get(key, "")


def _kind(causes: Causes, download: Path | None) -> _Kind:
    if download and causes.is_disk_error(download):
        return DiskError, "disk"
    if causes.is_untrusted_certificate:
        return RegistryUnavailable, "certificate"
    if key := _denial(causes):
        return RegistryDenied, key
    if causes.is_missing_database:
        return RegistryRejected, "database"
    transient = _TRANSIENT_STATUSES - {500}
    if causes.code in _AWAY or causes.status in transient or causes.is_connection_error:
        return RegistryUnavailable, None
    if "NoSuchModuleError" in causes.names:
        return DriverMissing, "dialect"
    return (_missing_artifacts(causes) if download else None) or _rejection(causes) or _fault(causes)


def _denial(causes: Causes) -> _RemedyKey:
    """Return the key of the remedy for a denied access; None for other errors."""
    if causes.s3_code in _S3_CODES:
        return _S3_CODES[causes.s3_code]
    if causes.status == 403 and _HEADER.search(causes.text):
        return "host"
    if causes.status in (401, 403):
        return causes.status
    if causes.is_denied_by_database:
        return "database user"
    if causes.lacks_credentials:
        return 401
    return 403 if causes.lacks_permission else None


def _missing_artifacts(causes: Causes) -> _Kind | None:
    is_missing = causes.status == 404 or causes.code == "RESOURCE_DOES_NOT_EXIST" or causes.is_missing_file
    return (ArtifactsMissing, 404) if is_missing else None


def _rejection(causes: Causes) -> _Kind | None:
    if causes.status == 404 or causes.code == "ENDPOINT_NOT_FOUND":
        return RegistryRejected, 404
    if causes.is_of_database:  # MLflow reports each error of its database as BAD_REQUEST
        return None
    is_rejected = (causes.status is not None and causes.status < 500) or causes.code in _REJECTED
    return (RegistryRejected, None) if is_rejected else None


def _fault(causes: Causes) -> _Kind:
    if _OLD_SCHEMA in causes.text:
        return RegistryFault, "schema"
    if causes.status is not None or type(causes.error).__name__ == "RestException":
        return RegistryFault, 500  # MLflow's client raises a RestException for the response of a server
    if causes.code == "INTERNAL_ERROR" and not causes.text.startswith(_NO_VALID_RESPONSE):
        return RegistryFault, None
    return RegistryUnavailable, None


def _how_to_install(module: str) -> str:
    for package, extra in _EXTRAS.items():
        if f"{module}.".startswith(f"{package}."):
            return install_command(extra)
    return f"install the package that contains the module {module}"


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed soon, without any action."""
    causes = Causes(error)
    if causes.status is not None:
        return causes.status in _TRANSIENT_STATUSES
    if isinstance(error, (ImportError, OSError, ValueError, TypeError)):
        return causes.is_connection_error
    return classify(error)[0] in (RegistryUnavailable, RegistryFault)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line, without passwords and SQL statements."""
    return redact(" ".join(str(error).partition("\n[SQL")[0].split()))
