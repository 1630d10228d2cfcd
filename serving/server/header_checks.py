"""Checks of request heads that the HTTP parser lacks, and the response to an invalid head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.http.problem_details import respond
from serving.request_context import new_id

_PLAIN_TARGET = re.compile(rb"/[!\"$&-~]*")
"""A target without percent-encoding, which is valid as it is."""
_VALID_TARGET = re.compile(rb"/(?:[!\"$&-~]|%[0-9A-Fa-f]{2})*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OF_UPGRADES = frozenset({b"upgrade", b"http2-settings"})


CHECKED_FIELDS = frozenset({b"host", b"transfer-encoding", b"expect"})
"""The header fields to pass to `FieldChecker.check`."""


class Invalid(Exception):
    """The request is refused before it reaches the application."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.detail, self.status = detail, status


def too_long(what: str, max_bytes: int) -> Invalid:
    """Return the error for a head or trailers that exceed their limit."""
    return Invalid(f"The {what} of the request has more than {max_bytes} bytes.", 431)


class FieldChecker:
    """Checks the header fields on which the framing and the target of a request depend."""

    def __init__(self) -> None:
        self._host: bytes | None = None  # the last valid one; most connections use only one
        self.invalid: Invalid | None = None
        """The reason for the refusal, since the parser hides exceptions of its callbacks."""
        self.reset()

    def reset(self) -> None:
        """Start with the next head."""
        self._hosts = 0
        self.is_chunked = False
        """True if the body of the request is chunked."""

    def refuse(self, error: Invalid) -> NoReturn:
        """Store an error and raise it."""
        self.invalid = error
        raise error

    def check(self, name: bytes, value: bytes) -> bytes:
        """Return the value of one of `CHECKED_FIELDS` without surrounding blanks.

        Raises:
            Invalid: the value is not valid, or the field occurs twice.
        """
        if name == b"host":
            self._hosts += 1
            if value == self._host:
                return value
        value = value.strip(b" \t")
        if name == b"host":
            if value != self._host and not _HOST.fullmatch(value):
                self.refuse(Invalid("The Host header is not a host name or an IP address."))
            self._host = value
        elif name == b"transfer-encoding":
            if self.is_chunked or value.lower() != b"chunked":
                self.refuse(Invalid("The only supported Transfer-Encoding is chunked, once."))
            self.is_chunked = True
        elif value.lower() != b"100-continue":
            self.refuse(Invalid("The only supported expectation is 100-continue.", 417))
        return value

    def check_head(self, method: bytes, target: bytes, version: str) -> None:
        """Check a complete head after its fields.

        Raises:
            Invalid: the fields contradict the version, or the target is malformed.
        """
        if version == "1.1" and self._hosts == 1 and method != b"CONNECT" and _PLAIN_TARGET.fullmatch(target):
            return
        if version not in ("1.1", "1.0"):
            self.refuse(Invalid("This service supports only HTTP/1.1."))
        if method == b"CONNECT":
            self.refuse(Invalid("This service is not a proxy.", 405))
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            self.refuse(Invalid("Exactly one Host header is required."))
        if self.is_chunked and version == "1.0":
            self.refuse(Invalid("HTTP/1.0 does not support Transfer-Encoding."))
        if not is_valid_target(target, (self._hosts and self._host) or b"", method):
            self.refuse(Invalid("The path is malformed or contains control characters."))


def is_valid_target(target: bytes, host: bytes, method: bytes) -> bool:
    """Check that a request target is well-formed and that its decoded path has no control characters.

    The host of a target with scheme and authority must be the same as in the Host header.
    """
    if _PLAIN_TARGET.fullmatch(target):
        return True
    if target == b"*":
        return method == b"OPTIONS"
    if absolute := _ABSOLUTE.fullmatch(target):
        if absolute[1].lower() != host.lower():
            return False
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not _VALID_TARGET.fullmatch(target):
        return False
    try:
        path = unquote_to_bytes(target.partition(b"?")[0]).decode()
    except UnicodeDecodeError:
        return False
    return _CONTROL.search(path) is None


def without_upgrade(
    method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Return the head of a request without its offer to change protocols."""
    lines = [b"%b %b HTTP/%b\r\n" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            options = (option.strip() for option in value.split(b","))
            value = b", ".join(option for option in options if option.lower() not in _OF_UPGRADES)
        if name not in _OF_UPGRADES:
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines) + b"\r\n"


def refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> bytes:
    """Return the response to a refused request, after which the server closes the connection."""
    request_id = new_id()
    more = {"X-Request-ID": request_id, "Connection": "close", **(headers or {})}
    response: Response = respond(status, detail, request_id, headers=more)
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[status] + head + b"\r\n" + bytes(response.body)
