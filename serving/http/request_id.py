"""Request ids: the client's own where it is safe in a log, otherwise a new one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from serving.request_context import new_id

_SAFE = re.compile(r"[!-~]{1,128}")


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id of a request with these headers."""
    for name, value in headers:
        if name == b"x-request-id" and _SAFE.fullmatch(sent := value.decode("latin-1")):
            return sent
    return new_id()
