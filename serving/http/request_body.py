"""Reads a request: the right media type, no more bytes than the limit, no further than needed, in time."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Collection

from starlette.types import Message, Receive, Scope

from serving.errors import BodyTooLarge, ClientDisconnected, Malformed, RequestTimeout, UnsupportedMedia

JSON = "application/json"
SECONDS = 20.0
"""The time that a body may take to arrive, where nothing else is set."""
_DECIMAL = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


async def read_json(scope: Scope, receive: Receive, most_bytes: int, seconds: float = SECONDS) -> bytes:
    """The body of a JSON request.

    Raises:
        UnsupportedMedia: it says that it is something else, or does not say what it is.
        BodyTooLarge: it is over the limit; no more of it is read.
        TooSlow: it was not whole in time.
        Malformed: it asks for an answer within what is no number of seconds.
        CallerLeft: the caller went before it was whole.
    """
    media_type = _check_headers(scope, most_bytes)
    if media_type != b"application/json" and _essence(media_type) != JSON:
        raise UnsupportedMedia("Send JSON, with the header Content-Type: application/json.")
    return await _read(receive, most_bytes, seconds)


async def read_typed(
    scope: Scope, receive: Receive, most_bytes: int, seconds: float, media_types: Collection[str]
) -> tuple[str, bytes]:
    """The media type of a request, one of these, and its body; raises as `read_json` does."""
    media_type = _essence(_check_headers(scope, most_bytes))
    if media_type not in media_types:
        raise UnsupportedMedia(
            f"Send one of {', '.join(media_types)}, and say so with the header Content-Type."
        )
    return media_type, await _read(receive, most_bytes, seconds)


async def read_untyped(scope: Scope, receive: Receive, most_bytes: int, seconds: float) -> tuple[str, bytes]:
    """The media type of a request, empty where it says none, and its body; raises as `read_json` does."""
    told = _check_headers(scope, most_bytes)
    if told and not _essence(told):
        raise UnsupportedMedia("Send JSON in UTF-8.")
    return _essence(told), await _read(receive, most_bytes, seconds)


async def _read(receive: Receive, most_bytes: int, seconds: float) -> bytes:
    message = await receive()
    body = _piece(message)
    if message.get("more_body"):
        try:
            async with asyncio.timeout(seconds):
                body = await _read_rest(receive, body, most_bytes)
        except TimeoutError:
            raise RequestTimeout(f"The body was not whole after {seconds:g} s.") from None
    if len(body) > most_bytes:
        raise BodyTooLarge(f"The body has more than {most_bytes} bytes.")
    return body


async def _read_rest(receive: Receive, begun: bytes, most_bytes: int) -> bytes:
    body, more = bytearray(begun), True
    while more and len(body) <= most_bytes:
        message = await receive()
        body += _piece(message)
        more = message.get("more_body", False)
    return bytes(body)


def _piece(message: Message) -> bytes:
    if message["type"] != "http.request":
        raise ClientDisconnected("The caller went before the body was whole.")
    piece: bytes = message.get("body", b"")
    return piece


def _check_headers(scope: Scope, most_bytes: int) -> bytes:
    """The media type that the request's head says, if the rest of it is fine."""
    media_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length" and int(value) > most_bytes:
            raise BodyTooLarge(f"The body has more than {most_bytes} bytes.")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMedia("Compressed bodies are not taken: send it without Content-Encoding.")
        elif name == b"x-request-timeout":
            scope["timeout"] = _seconds(value)
    return media_type


def _seconds(text: bytes) -> float:
    if not _DECIMAL.fullmatch(text):
        raise Malformed("X-Request-Timeout is no number of seconds, such as 0.5.")
    return float(text)


def timeout(scope: Scope) -> float:
    """The seconds within which the caller of a request that was read wants its answer."""
    asked: float = scope.get("timeout", math.inf)
    return asked


def _essence(media_type: bytes) -> str:
    """A media type without its parameters; nothing where it is of another charset than UTF-8."""
    essence, _, rest = media_type.lower().partition(b";")
    charset = rest.strip().removeprefix(b"charset=").strip(b'"')
    return essence.strip().decode("latin-1") if charset in (b"", b"utf-8", b"utf8") else ""
