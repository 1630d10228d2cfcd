"""Maps exceptions of MLflow and its libraries to this package's errors, by their cause.

The messages name the cause and the remedy. They contain neither an address nor a page of a server, because
clients read some of them: the `detail` of an error has both, for the log.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.errors import (
    DriverMissing,
    ReferenceNotFound,
    RegistryDenied,
    RegistryFault,
    RegistryRejected,
    RegistryUnavailable,
    ServingError,
)
from serving.telemetry.redaction import redact
from serving.text import install_command, shorten

_MAX_LENGTH, _MAX_DETAIL_LENGTH = 400, 4000
_MAX_CHAIN = 20
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_DENIED = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
_AWAY = {"TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"}
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
_HEADER, _STATUS = re.compile(r"Invalid Host header", re.IGNORECASE), re.compile(r"error code (\d{3}) != ")
_PAGE = re.compile(
    r"<(?:!doctype|html|head|body|title|meta|center|div|h[1-6]|p)\b.*", re.IGNORECASE | re.DOTALL
)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+|\bhost='[^']*', port=[\w']+", re.IGNORECASE)
_REMEDIES = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    403: "give the service's user the permission to read the model, and to edit its tags",
    "certificate": "set MLFLOW_TRACKING_SERVER_CERT_PATH to the CA certificate of the server",
    "host": "add the host name to --allowed-hosts of the MLflow server",
    404: "check the address and its path prefix in MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI",
}


@contextmanager
def map_exceptions(subject: str, *, may_be_missing: bool = True) -> Iterator[None]:
    """Map exceptions in the block to `RegistryError` and its subclasses."""
    try:
        yield
    except ServingError:
        raise
    except Exception as error:  # MLflow does not wrap those of its libraries: HTTP, SQL, OS, JSON
        text = one_line(error)
        if may_be_missing and getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            reason = shorten(public(text), _MAX_LENGTH)
            raise ReferenceNotFound(f"{subject} names nothing in the registry ({reason})") from error
        kind, remedy = classify(error)
        reason = shorten(public(text), _MAX_LENGTH)
        message = f"{subject}: {type(error).__name__}: {reason}" + (f"; {remedy}" if remedy else "")
        raise kind(message, detail=shorten(text, _MAX_DETAIL_LENGTH)) from error


def classify(error: BaseException) -> tuple[type[RegistryUnavailable], str]:
    """Return the class of an exception of MLflow or its libraries, and the remedy if one is known."""
    chain, text = [*_chain(error)], str(error)
    for cause in chain:
        if isinstance(cause, ImportError) and cause.name:
            return DriverMissing, _how_to_install(cause.name)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain):
        return RegistryUnavailable, _REMEDIES["certificate"]
    status, code = _status(chain, text), getattr(error, "error_code", None)
    if status == 403 and _HEADER.search(text):
        return RegistryDenied, _REMEDIES["host"]
    if status in (401, 403):
        return RegistryDenied, _REMEDIES[status]
    if code in _AWAY or status in _TRANSIENT_STATUSES - {500} or _is_connection_error(chain):
        return RegistryUnavailable, ""
    if status == 404 or code == "ENDPOINT_NOT_FOUND":
        return RegistryRejected, _REMEDIES[404]
    if (status is not None and status < 500) or code == "INVALID_PARAMETER_VALUE":
        return RegistryRejected, ""
    if status is not None or _is_fault_of_server(error):
        return RegistryFault, "see the log of the MLflow server"
    return RegistryUnavailable, ""


def _how_to_install(module: str) -> str:
    for package, extra in _EXTRAS.items():
        if f"{module}.".startswith(f"{package}."):
            return install_command(extra)
    return f"install the package that contains the module {module}"


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed soon, without any action."""
    chain = [*_chain(error)]
    status = _status(chain, str(error))
    if status is not None:
        return status in _TRANSIENT_STATUSES
    return _is_connection_error(chain) or not isinstance(error, (ImportError, OSError, ValueError, TypeError))


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line, without passwords and SQL statements."""
    return redact(" ".join(str(error).partition("\n[SQL")[0].split()))


def public(text: str) -> str:
    """Return a message without addresses, and with the title of a page in place of the page."""
    if page := _PAGE.search(text):
        title = _TITLE.search(page[0])
        shown = f"a page with the title {title[1].strip()!r}" if title else "a page"
        text = f"{text[: page.start()]}{shown}"
    return _ADDRESS.sub("…", text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that caused it, also where libraries pass them as arguments."""
    pending, seen = [error], set[int]()
    while pending and len(seen) < _MAX_CHAIN:
        cause = pending.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        inner = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        pending += [other for other in inner if isinstance(other, BaseException)]


def _status(chain: list[BaseException], text: str) -> int | None:
    """Return the HTTP status that an exception reports; None if it reports none."""
    for cause in chain:
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if status is None and isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
        code: Any = getattr(cause, "error_code", None)
        if code in _DENIED:
            return _DENIED[code]
    reported = _STATUS.search(text)
    return int(reported[1]) if reported else None


def _is_connection_error(chain: list[BaseException]) -> bool:
    """Return whether the connection failed or was interrupted."""
    names = {base.__name__ for cause in chain for base in type(cause).__mro__}
    return not names.isdisjoint(
        {"ConnectionError", "Timeout", "TimeoutError", "HTTPError", "ProtocolError", "gaierror"}
        | {"EndpointConnectionError", "OperationalError", "HTTPClientError"}
    )


def _is_fault_of_server(error: BaseException) -> bool:
    """Return whether a server reported the error: in MLflow's client it has the whole response."""
    return type(error).__name__ == "RestException"
