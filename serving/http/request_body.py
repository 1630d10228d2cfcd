"""Reading of request bodies: media type, compression, size and time limit, and no further than needed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection

from starlette.types import Message, Receive

from serving.errors import BodyTooLarge, ClientDisconnected, Malformed, RequestTimeout, UnsupportedMedia
from serving.http.http_context import HttpContext
from serving.http.request_decompression import decompress, request_coding

JSON = "application/json"
READ_TIMEOUT_SECONDS = 20.0
"""The time that a body may take to arrive, unless a setting overrides it."""
_DECIMAL = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


async def read_json(context: HttpContext, max_bytes: int, seconds: float = READ_TIMEOUT_SECONDS) -> bytes:
    """Return the body of a JSON request.

    Raises:
        UnsupportedMedia: the Content-Type header is missing or is not JSON in UTF-8, or the Content-Encoding
            is not supported.
        BodyTooLarge: the body exceeds the limit, before or after decompression; the rest of it is not read.
        RequestTimeout: the body did not arrive in time.
        Malformed: the header X-Request-Timeout is not a number of seconds, or the body is not compressed as
            Content-Encoding describes.
        ClientDisconnected: the client disconnected before the body was complete.
    """
    media_type, coding = _check_headers(context, max_bytes)
    if media_type != b"application/json" and _essence(media_type) != JSON:
        raise UnsupportedMedia("Send JSON, with the header Content-Type: application/json.")
    return await _read(context.receive, max_bytes, seconds, coding)


async def read_typed(
    context: HttpContext, max_bytes: int, seconds: float, media_types: Collection[str]
) -> tuple[str, bytes]:
    """Return the media type of a request, which is one of these, and its body; raises as `read_json`."""
    sent_type, coding = _check_headers(context, max_bytes)
    media_type = _essence(sent_type)
    if media_type not in media_types:
        raise UnsupportedMedia(f"Send one of {', '.join(media_types)}, named in the header Content-Type.")
    return media_type, await _read(context.receive, max_bytes, seconds, coding)


async def read_untyped(context: HttpContext, max_bytes: int, seconds: float) -> tuple[str, bytes]:
    """Return the media type of a request, empty if it has none, and its body; raises as `read_json`."""
    media_type, coding = _check_headers(context, max_bytes)
    if media_type and not _essence(media_type):
        raise UnsupportedMedia("Send JSON in UTF-8.")
    return _essence(media_type), await _read(context.receive, max_bytes, seconds, coding)


async def _read(receive: Receive, max_bytes: int, seconds: float, coding: str | None) -> bytes:
    message = await receive()
    body = _chunk(message)
    if message.get("more_body"):
        try:
            async with asyncio.timeout(seconds):
                body = await _read_rest(receive, body, max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"The body was not complete after {seconds:g} s.") from None
    if len(body) > max_bytes:
        raise BodyTooLarge(f"The body has more than {max_bytes} bytes.")
    return await decompress(coding, body, max_bytes) if coding else body


async def _read_rest(receive: Receive, start: bytes, max_bytes: int) -> bytes:
    body, more = bytearray(start), True
    while more and len(body) <= max_bytes:
        message = await receive()
        body += _chunk(message)
        more = message.get("more_body", False)
    return bytes(body)


def _chunk(message: Message) -> bytes:
    if message["type"] != "http.request":
        raise ClientDisconnected("The client disconnected before the body was complete.")
    chunk: bytes = message.get("body", b"")
    return chunk


def _check_headers(context: HttpContext, max_bytes: int) -> tuple[bytes, str | None]:
    """Return the media type and the coding of a request, and store the client's timeout."""
    media_type, codings = b"", []
    for name, value in context.headers:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length" and int(value) > max_bytes:
            raise BodyTooLarge(f"The body has more than {max_bytes} bytes.")
        elif name == b"content-encoding":
            codings.append(value)
        elif name == b"x-request-timeout":
            context.timeout = _seconds(value)
    return media_type, request_coding(codings) if codings else None


def _seconds(text: bytes) -> float:
    if not _DECIMAL.fullmatch(text):
        raise Malformed("X-Request-Timeout is not a number of seconds, such as 0.5.")
    return float(text)


def _essence(media_type: bytes) -> str:
    """Return a media type without its parameters, or nothing if its charset is not UTF-8.

    CSV keeps RFC 4180's parameter `header=absent`, which changes the meaning of its first line.
    """
    essence, _, rest = media_type.lower().partition(b";")
    parameters = [parameter.strip() for parameter in rest.split(b";")]
    suffix = ""
    if essence.strip() == b"text/csv":
        suffix = "; header=absent" if b"header=absent" in parameters else ""
        parameters = [each for each in parameters if each not in (b"header=absent", b"header=present")]
    charset = b";".join(parameters).removeprefix(b"charset=").strip(b'"')
    return essence.strip().decode("latin-1") + suffix if charset in (b"", b"utf-8", b"utf8") else ""
