"""Reads a request body: the right media type, no more bytes than the limit, no further than needed."""

from __future__ import annotations

from starlette.types import Receive, Scope

from serving.errors import BodyTooLarge, CallerLeft, UnsupportedMedia


async def read_json(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    """The body of a JSON request.

    Raises:
        UnsupportedMedia: it says that it is something else, or does not say what it is.
        BodyTooLarge: it is over the limit; no more of it is read.
        CallerLeft: the caller went before it was whole.
    """
    _check(scope, most_bytes)
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise CallerLeft("The caller went before the body was whole.")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most_bytes:
            raise BodyTooLarge(f"The body has more than {most_bytes} bytes.")
        if not message.get("more_body"):
            return b"".join(pieces)


def _check(scope: Scope, most_bytes: int) -> None:
    media_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length" and int(value) > most_bytes:
            raise BodyTooLarge(f"The body has more than {most_bytes} bytes.")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMedia("Compressed bodies are not taken: send it without Content-Encoding.")
    if media_type != b"application/json" and not _is_json(media_type):
        raise UnsupportedMedia("Send JSON, with the header Content-Type: application/json.")


def _is_json(media_type: bytes) -> bool:
    essence, _, rest = media_type.lower().partition(b";")
    charset = rest.strip().removeprefix(b"charset=").strip(b'"')
    return essence.strip() == b"application/json" and charset in (b"", b"utf-8", b"utf8")
