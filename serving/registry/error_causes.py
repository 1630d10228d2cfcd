"""Reads the cause of an exception of MLflow and its libraries: status, code, and classes of its chain.

Classes are compared by name, because most of the libraries are optional.
"""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

_MAX_CHAIN = 20
_STATUSES = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
_MIN_ERROR_STATUS = 400
_STATUS = re.compile(r"error code (\d{3}) != ")
_CONNECTION_ERRORS = frozenset({
    *("ConnectionError", "Timeout", "TimeoutError", "HTTPError", "ProtocolError", "gaierror"),
    *("EndpointConnectionError", "OperationalError", "HTTPClientError"),
})  # fmt: skip
_CREDENTIAL_ERRORS = frozenset({
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"),
    *("TokenRetrievalError", "SSOError", "ProfileNotFound"),  # botocore
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),  # Google, Azure
    *("Unauthenticated", "PermissionDenied"),  # Databricks
})  # fmt: skip
_DATABASE_DENIALS = {"28P01", "28000", "42501", 1044, 1045, 1142, 1143, 1698}
"""SQLSTATEs of PostgreSQL and numbers of MySQL; a failed connection of psycopg2 has only a text."""
_DATABASE_DENIAL = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role \"[^\"]*\" does not exist"
    r"|permission denied|access denied|command denied|not permitted to log in|readonly database",
    re.IGNORECASE,
)
_MISSING_DATABASE = re.compile(r"database \"[^\"]*\" does not exist|unknown database", re.IGNORECASE)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class Causes:
    """An exception with those that caused it.

    Attributes:
        error: The exception.
        text: Its message.
        code: MLflow's code of the error; None if the exception is not MLflow's.
    """

    def __init__(self, error: BaseException) -> None:
        self.error, self.text = error, str(error)
        self.code: str | None = getattr(error, "error_code", None)
        self._chain = [*_chain(error)]

    @cached_property
    def names(self) -> set[str]:
        """The names of the classes of all exceptions in the chain, and of their bases."""
        return {base.__name__ for cause in self._chain for base in type(cause).__mro__}

    @cached_property
    def status(self) -> int | None:
        """The HTTP status that the exception reports; None if it reports none."""
        for cause in self._chain:
            response = getattr(cause, "response", None)
            status = getattr(response, "status_code", None)
            if status is None and isinstance(response, dict):  # botocore
                status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int) and status >= _MIN_ERROR_STATUS:
                return status
            code: Any = getattr(cause, "error_code", None)
            if code in _STATUSES:
                return _STATUSES[code]
        reported = _STATUS.search(self.text)
        return int(reported[1]) if reported else None

    @property
    def s3_code(self) -> str | None:
        """The code of an error of S3."""
        for cause in self._chain:
            response = getattr(cause, "response", None)
            if isinstance(response, dict):
                return str(response.get("Error", {}).get("Code"))
        return None

    @property
    def missing_module(self) -> str | None:
        """The module that could not be imported."""
        return next((c.name for c in self._chain if isinstance(c, ImportError) and c.name), None)

    @property
    def is_connection_error(self) -> bool:
        """Whether the connection failed or was interrupted, without an error response of the server."""
        return self.status is None and not self.names.isdisjoint(_CONNECTION_ERRORS)

    @property
    def is_untrusted_certificate(self) -> bool:
        """Whether the certificate of a server cannot be verified."""
        return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in self._chain)

    @property
    def lacks_credentials(self) -> bool:
        """Whether a library has no valid credentials for a request."""
        return not (self.is_connection_error or self.names.isdisjoint(_CREDENTIAL_ERRORS))

    @property
    def lacks_permission(self) -> bool:
        """Whether the operating system denies access to a file."""
        return "PermissionError" in self.names and not self.is_connection_error

    @property
    def is_missing_file(self) -> bool:
        """Whether a local file or folder does not exist."""
        return "FileNotFoundError" in self.names and not self.is_connection_error

    @property
    def is_denied_by_database(self) -> bool:
        """Whether a database rejects the user, or lacks a permission for it."""
        return self.is_of_database and (
            any(_database_code(cause) in _DATABASE_DENIALS for cause in self._chain)
            or _DATABASE_DENIAL.search(self.text) is not None
        )

    @property
    def is_missing_database(self) -> bool:
        """Whether a server of databases has no database of the name in the URI."""
        return self.is_of_database and _MISSING_DATABASE.search(self.text) is not None

    @property
    def is_of_database(self) -> bool:
        """Whether the driver of a database raised the error."""
        return "DBAPIError" in self.names

    def is_disk_error(self, folder: Path) -> bool:
        """Return whether the disk of `folder` failed, is full, or does not permit writing there."""
        return any(isinstance(cause, OSError) and _is_disk_error(cause, folder) for cause in self._chain)


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


def _database_code(cause: BaseException) -> str | int | None:
    code = getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None)
    if code is None and cause.args and isinstance(cause.args[0], int):  # PyMySQL, mysqlclient
        code = cause.args[0]
    return code


def _is_disk_error(error: OSError, folder: Path) -> bool:
    if error.errno in _DISK_ERRORS:
        return True
    is_below = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
    return is_below and not isinstance(error, FileNotFoundError)  # the folder of an abandoned download
