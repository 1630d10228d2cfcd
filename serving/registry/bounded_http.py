"""Bounds HTTP calls of MLflow: it reads every response whole, regardless of its size and speed.

Registry calls and downloads have different limits. A poll must fail within seconds. A server of artifacts may
need minutes for the first byte, for example while it fetches a file from a bucket.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

MAX_RESPONSE_BYTES = 16 * 2**20
MAX_PART_BYTES = 2**30
"""The same limit in threads that download files: clients of buckets read each part of a file whole."""
MAX_RESPONSE_SECONDS = 10.0
REGISTRY_TIMEOUT_SECONDS = 3.0
"""Limit for a connection and for each read of a registry call, unless MLflow's own variable sets another."""
_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_CHUNK = 2**16


class _ThreadLimits(threading.local):
    """The limits of the present thread.

    Attributes:
        timeout: seconds to connect and to read; None: those of the caller.
        max_bytes: maximum size of a response.
    """

    timeout: tuple[float, float] | None = None
    max_bytes = MAX_RESPONSE_BYTES


_limits = _ThreadLimits()


def set_timeout(connect_seconds: float, read_seconds: float, max_bytes: int = MAX_RESPONSE_BYTES) -> None:
    """Set the limits of HTTP calls in the present thread; they outrank those that MLflow passes."""
    _limits.timeout, _limits.max_bytes = (connect_seconds, read_seconds), max_bytes


def install(thread_name: str) -> None:
    """Bound the responses that threads of this name receive through `requests`; others do not change."""
    from requests.adapters import HTTPAdapter

    original = HTTPAdapter.send
    if getattr(original, "is_bounded", False):
        return

    def send(self: HTTPAdapter, request: Any, stream: bool = False, *args: Any, **options: Any) -> Any:
        is_registry_call = threading.current_thread().name == thread_name
        if stream or not (is_registry_call or _limits.timeout):
            return original(self, request, stream, *args, **options)
        if _limits.timeout:
            options["timeout"] = _limits.timeout
        elif _TIMEOUT_VARIABLE not in os.environ:
            options["timeout"] = REGISTRY_TIMEOUT_SECONDS
        if not self.max_retries.total:
            # MLflow makes urllib3 raise at some statuses, which loses the message of the server.
            self.max_retries = self.max_retries.new(status_forcelist=())
        response = original(self, request, True, *args, **options)
        try:
            response._content = _read(response, None if _limits.timeout else MAX_RESPONSE_SECONDS)
        finally:
            response.close()
        response._content_consumed = True
        return response

    send.is_bounded = True  # type: ignore[attr-defined]
    HTTPAdapter.send = send  # type: ignore[method-assign]


def _read(response: Any, max_seconds: float | None) -> bytes:
    from requests.exceptions import RequestException

    started = time.monotonic()
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK, decode_content=True):
        content += chunk
        if len(content) > _limits.max_bytes:
            raise RequestException(f"the response is larger than {_limits.max_bytes} bytes")
        if max_seconds is not None and time.monotonic() - started > max_seconds:
            raise RequestException(f"the response is not complete after {max_seconds:g} s")
    return bytes(content)
