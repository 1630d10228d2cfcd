"""The status of each error in every protocol, and what a client may read about a failed request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from serving import errors
from serving.errors import FieldError, ModelFailed, ServingError
from serving.request_context import RequestContext
from serving.text import shorten

_MAX_MESSAGE_LENGTH = 4000


class Status(IntEnum):
    """The outcome of a request in every protocol, numbered as in metrics and in the access log."""

    INVALID = 400
    UNAUTHENTICATED = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    RECEIVE_TIMEOUT = 408
    TOO_LARGE = 413
    UNSUPPORTED_MEDIA = 415
    UNPROCESSABLE = 422
    RATE_EXCEEDED = 429
    CLIENT_CLOSED_REQUEST = 499
    """Never sent. Recorded for a client that disconnected, as nginx does."""
    INTERNAL = 500
    UNAVAILABLE = 503
    DEADLINE_EXCEEDED = 504


STATUSES: Mapping[type[ServingError], Status] = {
    errors.Malformed: Status.INVALID,
    errors.ConflictingModel: Status.INVALID,
    errors.BadHost: Status.INVALID,
    errors.CrossSite: Status.FORBIDDEN,
    errors.Unauthenticated: Status.UNAUTHENTICATED,
    errors.Forbidden: Status.FORBIDDEN,
    errors.RateExceeded: Status.RATE_EXCEEDED,
    errors.UnknownModel: Status.NOT_FOUND,
    errors.UnknownPrediction: Status.NOT_FOUND,
    errors.NotStreaming: Status.NOT_FOUND,
    errors.RequestTimeout: Status.RECEIVE_TIMEOUT,
    errors.BodyTooLarge: Status.TOO_LARGE,
    errors.UnsupportedMedia: Status.UNSUPPORTED_MEDIA,
    errors.Unprocessable: Status.UNPROCESSABLE,
    errors.ModelFailed: Status.INTERNAL,
    errors.Unavailable: Status.UNAVAILABLE,
    errors.DeadlineExceeded: Status.DEADLINE_EXCEEDED,
    errors.ClientDisconnected: Status.CLIENT_CLOSED_REQUEST,
}
"""The status of each class of errors; a subclass has the status of its nearest listed parent."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client may read about a failed request; `retry_after` is in seconds."""

    status: int
    detail: str
    faults: Sequence[FieldError] = ()
    retry_after: int | None = None


def one_line(detail: str, faults: Sequence[FieldError]) -> str:
    """Return the text of a failure for protocols that have no list of invalid fields."""
    listed = "; ".join(f"{', '.join(map(str, fault.loc))}: {fault.msg}" for fault in faults)
    return shorten(f"{detail} {listed}".strip(), _MAX_MESSAGE_LENGTH)


def failure_of(context: RequestContext, error: Exception) -> Failure:
    """Return the status and the texts of an error for the client."""
    if not isinstance(error, ServingError):
        return Failure(Status.INTERNAL.value, "Internal server error; see the log of the service.")
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES).value
    match error:
        case ModelFailed():
            return Failure(status, "The model failed on this request.")
        case errors.NotLive() if not context.sees_reasons:
            return Failure(status, error.public, retry_after=error.retry_after)
        case errors.Unavailable() | errors.RateExceeded():
            return Failure(status, str(error), retry_after=error.retry_after)
        case errors.RequestError():
            return Failure(status, str(error), error.faults)
    return Failure(status, str(error))
