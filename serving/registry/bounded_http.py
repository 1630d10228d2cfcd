"""Bounds the registry's responses: MLflow reads every response whole, regardless of its size and speed."""

from __future__ import annotations

import threading
import time
from typing import Any

MAX_RESPONSE_BYTES = 16 * 2**20
MAX_RESPONSE_SECONDS = 10.0
_CHUNK = 2**16


def install(thread_name: str) -> None:
    """Bound the responses that threads of this name receive through `requests`; others do not change."""
    from requests.adapters import HTTPAdapter

    original = HTTPAdapter.send
    if getattr(original, "is_bounded", False):
        return

    def send(self: HTTPAdapter, request: Any, stream: bool = False, *args: Any, **options: Any) -> Any:
        if stream or threading.current_thread().name != thread_name:
            return original(self, request, stream, *args, **options)
        response = original(self, request, True, *args, **options)
        try:
            response._content = _read(response)
        finally:
            response.close()
        response._content_consumed = True
        return response

    send.is_bounded = True  # type: ignore[attr-defined]
    HTTPAdapter.send = send  # type: ignore[method-assign]


def _read(response: Any) -> bytes:
    from requests.exceptions import RequestException

    ends = time.monotonic() + MAX_RESPONSE_SECONDS
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK, decode_content=True):
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise RequestException(f"the response is larger than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > ends:
            raise RequestException(f"the response is not complete after {MAX_RESPONSE_SECONDS:g} s")
    return bytes(content)
