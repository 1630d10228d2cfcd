"""Reads a request body: the right media type, no more bytes than the limit, no further than needed."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import Receive, Scope

from serving.errors import BodyTooLarge, CallerLeft, UnsupportedMedia

JSON = "application/json"


async def read_json(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    """The body of a JSON request.

    Raises:
        UnsupportedMedia: it says that it is something else, or does not say what it is.
        BodyTooLarge: it is over the limit; no more of it is read.
        CallerLeft: the caller went before it was whole.
    """
    media_type = _head(scope, most_bytes)
    if media_type != b"application/json" and _essence(media_type) != JSON:
        raise UnsupportedMedia("Send JSON, with the header Content-Type: application/json.")
    return await _read(receive, most_bytes)


async def read_any(
    scope: Scope, receive: Receive, most_bytes: int, media_types: Collection[str]
) -> tuple[str, bytes]:
    """The media type of a request, one of these, and its body; raises as `read_json` does."""
    media_type = _essence(_head(scope, most_bytes))
    if media_type not in media_types:
        raise UnsupportedMedia(
            f"Send one of {', '.join(media_types)}, and say so with the header Content-Type."
        )
    return media_type, await _read(receive, most_bytes)


async def read_raw(scope: Scope, receive: Receive, most_bytes: int) -> tuple[str, bytes]:
    """The media type of a request, empty where it says none, and its body; raises as `read_json` does."""
    media_type = _essence(_head(scope, most_bytes))
    return media_type, await _read(receive, most_bytes)


async def _read(receive: Receive, most_bytes: int) -> bytes:
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


def _head(scope: Scope, most_bytes: int) -> bytes:
    """The media type that the request's head says, if the rest of it is fine."""
    media_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length" and int(value) > most_bytes:
            raise BodyTooLarge(f"The body has more than {most_bytes} bytes.")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMedia("Compressed bodies are not taken: send it without Content-Encoding.")
    return media_type


def _essence(media_type: bytes) -> str:
    """A media type without its parameters; nothing where it is of another charset than UTF-8."""
    essence, _, rest = media_type.lower().partition(b";")
    charset = rest.strip().removeprefix(b"charset=").strip(b'"')
    return essence.strip().decode("latin-1") if charset in (b"", b"utf-8", b"utf8") else ""
