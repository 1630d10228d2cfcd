"""The errors of the client as one tree.

ClientError
├── ConnectionFailed        no complete response, also after one retry
├── UnexpectedResponse      a response that this service does not send
└── ResponseError           an error that the service reported
    ├── InvalidRequest      400, 413, 415, 422: the request does not match the contract
    ├── AccessDenied        401, 403: the API key is missing, invalid, or lacks the scope
    ├── NotFound            404: no such model, version or prediction
    ├── RateLimited         429: the API key exceeds its rate
    ├── ModelFailed         500: the model failed on this request
    ├── Unavailable         503: not ready or at capacity
    └── DeadlineExceeded    504, or no response before the client's own deadline

Values that the client cannot send, such as NaN in a row, raise `ValueError` or `TypeError`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx


class ClientError(Exception):
    """Base of all errors of the client."""


class ConnectionFailed(ClientError):
    """No complete response arrived."""


class UnexpectedResponse(ClientError):
    """A response that this service does not send: the URL may be that of another server."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid field of a request: its location and a message."""

    loc: tuple[str | int, ...]
    msg: str


class ResponseError(ClientError):
    """An error that the service reported.

    Attributes:
        status: The HTTP status.
        detail: The message of the service.
        errors: The invalid fields.
        request_id: Identifies the request in the log of the service.
        retry_after: The seconds after which a retry may succeed; None if the service does not name a time.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        self.status, self.detail, self.errors = status, detail, tuple(errors)
        self.request_id, self.retry_after = request_id, retry_after
        super().__init__(status, detail, errors, request_id, retry_after)  # so that it can be pickled

    def __str__(self) -> str:
        fields = "".join(f"\n  {'.'.join(map(str, error.loc))}: {error.msg}" for error in self.errors)
        return f"{self.status}: {self.detail} (request {self.request_id or 'without ID'}){fields}"


class InvalidRequest(ResponseError):
    """The request does not match the contract, or is too large."""


class AccessDenied(ResponseError):
    """The API key is missing, invalid, or lacks the scope."""


class NotFound(ResponseError):
    """The model, version or prediction does not exist or is not visible to the API key."""


class RateLimited(ResponseError):
    """The API key exceeds its rate."""


class ModelFailed(ResponseError):
    """The model failed on this request."""


class Unavailable(ResponseError):
    """The model is not live or is at capacity."""


class DeadlineExceeded(ResponseError):
    """The deadline passed, in the service or in the client."""


_CLASSES: Mapping[int, type[ResponseError]] = {
    400: InvalidRequest,
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    500: ModelFailed,
    503: Unavailable,
    504: DeadlineExceeded,
}


def error_of(response: httpx.Response, request_id: str) -> ResponseError:
    """Return the error that a complete response reports.

    The detail of a body in another format, such as the HTML of a proxy, is the phrase of the status.
    """
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = {}
    return from_problem(
        problem,
        response.status_code,
        response.headers.get("x-request-id", request_id),
        _seconds(response.headers.get("retry-after")),
    )


def from_problem(
    problem: Any, status: int, request_id: str, retry_after: float | None = None
) -> ResponseError:
    """Return the error of a problem document or of an error in MLflow's format."""
    fields = problem if isinstance(problem, dict) else {}
    detail = fields.get("detail") or fields.get("message") or _phrase(status)
    listed = fields.get("errors") or ()
    errors = [FieldError(tuple(field["loc"]), field["msg"]) for field in listed if _is_field_error(field)]
    return _CLASSES.get(status, ResponseError)(status, str(detail), errors, request_id, retry_after)


def _is_field_error(field: Any) -> bool:
    return (
        isinstance(field, dict) and isinstance(field.get("loc"), list) and isinstance(field.get("msg"), str)
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"


def _seconds(retry_after: str | None) -> float | None:
    """Return the value of `Retry-After`, a number of seconds or a date (RFC 9110), in seconds from now."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
