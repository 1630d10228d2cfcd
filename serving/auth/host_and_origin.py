"""Checks of the host name that a client uses, and of the web page that sends a request."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

_PORT = re.compile(r":\d*$")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_SAME_SITE = frozenset({b"same-origin", b"none"})
_MAX_REMEMBERED = 100
_TRITON = b"python/gevent-http-client-"
"""The HTTP client of tritonclient."""


class HostNames:
    """Accepts the configured host names; `*.example.org` covers all names below it.

    If none is configured, it accepts `localhost`, names below it, and IP addresses. These are the names that
    no other site can point to this machine.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = [name.strip("[]") for name in names]  # of IPv6 addresses
        self._accepted: set[bytes] = set()

    def accepts(self, host: bytes | None) -> bool:
        """Check the value of a request's `Host` header."""
        if host in self._accepted:
            return True
        if host is None:
            return not self._names  # HTTP/1.0 needs no host; browsers always send one
        if not self._is_ours(_PORT.sub("", host.decode("latin-1").lower()).strip("[]")):
            return False
        if len(self._accepted) < _MAX_REMEMBERED:
            self._accepted.add(host)
        return True

    def _is_ours(self, host: str) -> bool:
        if not self._names:
            return host == "localhost" or host.endswith(".localhost") or _is_address(host)
        return any(
            host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in self._names
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_cross_site(method: str, headers: Mapping[bytes, bytes], origins: Collection[str]) -> bool:
    """Check whether a web page of another origin, not listed in `origins`, sends an unsafe request."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if (site is None and origin is None) or method in _SAFE_METHODS or site in _SAME_SITE:
        return False
    if origin is None:
        return True
    sent = origin.decode("latin-1")
    if sent in origins or "*" in origins:
        return False
    _, _, host = sent.lower().partition("://")
    return host != headers.get(b"host", b"").decode("latin-1").lower()


def lacks_media_type(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Check whether a request has a body without a `Content-Type`, which web pages can send to other sites.

    Triton's client never sends that header. Its requests have others that web pages cannot send to other
    sites: `Inference-Header-Content-Length`, or at least its own `User-Agent`.
    """
    if b"content-type" in headers or method in _SAFE_METHODS or b"inference-header-content-length" in headers:
        return False
    if headers.get(b"user-agent", b"").startswith(_TRITON):
        return False
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
