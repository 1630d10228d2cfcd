"""The exchange of one request: its deadline, its one retry and its errors, without input and output."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import httpx

from serving.client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    ResponseError,
    UnexpectedResponse,
    error_of,
)
from serving.client.requests import Call

T = TypeVar("T")
Step: TypeAlias = httpx.Request | float
"""A request to send, or seconds to wait."""
Exchange: TypeAlias = Generator[Step, httpx.Response | None, T]

_RETRIED_STATUSES = (429, 503)
_MIN_SECONDS, _MAX_SECONDS = 0.001, 999_999_999.0
"""What the header X-Request-Timeout can express."""


def exchange(http: httpx.Client | httpx.AsyncClient, call: Call[T]) -> Exchange[T]:
    """Yield the steps of a call, receive the response to each request, and return the parsed result.

    A prediction changes nothing, and feedback replaces itself, so a request may be sent again: once, if the
    connection fails before the response, or as soon as `Retry-After` of a 429 or 503 allows, provided that
    this is before the deadline.

    Raises:
        ClientError: No result, also after the retry.
    """
    request_id, ends = uuid4().hex, time.monotonic() + call.deadline
    try:
        response = yield _request(http, call, request_id, ends)
        pause = _pause_before_retry(call, response, request_id, ends)
        if pause is None:
            return _result(call, response, request_id)
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        pause = 0.0
    except httpx.RequestError as error:
        raise _failure(error, call, request_id) from error
    if pause:
        yield pause
    try:
        response = yield _request(http, call, request_id, ends)
    except httpx.RequestError as error:
        raise _failure(error, call, request_id) from error
    return _result(call, response, request_id)


def _request(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any], request_id: str, ends: float
) -> httpx.Request:
    """Return a request that ends with the deadline, in the service and on the network."""
    seconds = max(_MIN_SECONDS, ends - time.monotonic())
    limits = {"X-Request-ID": request_id, "X-Request-Timeout": f"{min(seconds, _MAX_SECONDS):.3f}"}
    return http.build_request(
        call.method,
        call.path,
        content=call.content or None,
        headers={**call.headers, **limits},
        params=[*call.query] or None,
        timeout=seconds,
    )


def _pause_before_retry(
    call: Call[Any], response: httpx.Response | None, request_id: str, ends: float
) -> float | None:
    """Return the seconds to wait before the retry; None if the response is final."""
    assert response is not None, "the response to a request"
    status = response.status_code
    if status not in _RETRIED_STATUSES or status in call.accepts:
        return None
    seconds = error_of(response, request_id).retry_after
    return seconds if seconds is not None and time.monotonic() + seconds < ends else None


def _result(call: Call[T], response: httpx.Response | None, request_id: str) -> T:
    assert response is not None, "the response to a request"
    if not response.is_success and response.status_code not in call.accepts:
        raise error_of(response, request_id)
    try:
        return call.parse(response)
    except (LookupError, TypeError, ValueError) as error:
        raise UnexpectedResponse(
            f"{_target(response.request)} returned an unknown form of response: {error!r}."
        ) from error


def _failure(error: httpx.RequestError, call: Call[Any], request_id: str) -> ConnectionFailed | ResponseError:
    if isinstance(error, httpx.TimeoutException):
        return deadline_exceeded(call.deadline, request_id)
    return connection_failed(error)


def deadline_exceeded(seconds: float, request_id: str) -> DeadlineExceeded:
    """Return the error for a response that did not arrive in time."""
    return DeadlineExceeded(504, f"No response within {seconds:g} s.", request_id=request_id)


def connection_failed(error: httpx.RequestError) -> ConnectionFailed:
    """Return the error for a connection that failed."""
    return ConnectionFailed(f"{_target(error.request)}: {str(error) or type(error).__name__}")


def ended_early(response: httpx.Response) -> ConnectionFailed:
    """Return the error for a stream without its last event: its chunks are not the whole prediction."""
    target = _target(response.request)
    return ConnectionFailed(f"{target}: the stream ended before the prediction was complete.")


def _target(request: httpx.Request) -> str:
    """Return method and address of a request without query and credentials."""
    url = request.url
    return f"{request.method} {url.scheme}://{url.netloc.decode()}{url.path}"
