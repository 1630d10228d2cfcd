"""What is open to everybody, what needs a key, and from where."""

from __future__ import annotations

import re
from collections.abc import Iterable

from serving.access.keys import Scope

PROBES = frozenset({"/health", "/livez", "/ready", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""What a supervisor asks, without a key and by whatever name of the host."""
_SIGNED = "/webhooks/mlflow"
_ADMIN = re.compile(r"/metrics|/status|/models/[^/]+/history")
_PAGE = re.compile(r"/|/page/[^/]+")
"""What the status page is made of: it tells nothing by itself, and asks for a key."""


def is_operators(path: str) -> bool:
    """Whether a path is for those who run the service."""
    return _ADMIN.fullmatch(path) is not None or _PAGE.fullmatch(path) is not None


def needed(path: str) -> Scope | None:
    """What a key has to open for this path; None where none is needed."""
    if path in PROBES or path == _SIGNED or _PAGE.fullmatch(path):
        return None
    return Scope.ADMIN if _ADMIN.fullmatch(path) else Scope.PREDICT


def is_called(hosts: Iterable[str], headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request names one of these hosts, of which `*.example.org` means all below that."""
    for name, value in headers:
        if name == b"host":
            host = re.sub(r":\d+$", "", value.decode("latin-1").lower()).strip("[]")
            return any(host == each or (each.startswith("*.") and host.endswith(each[1:])) for each in hosts)
    return False
