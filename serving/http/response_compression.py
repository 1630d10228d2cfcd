"""Compression of responses for clients that accept it (RFC 9110, 12.5.3)."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import pyarrow as pa
from starlette.types import Message, Send

from serving.http.http_context import Header
from serving.http.request_decompression import ALIASES
from serving.protocols.tabular import PARQUET

MIN_COMPRESSED_BYTES = 1025
"""Smaller bodies fit into one packet, which compression does not save."""
_MAX_INLINE_BYTES = 32_768
"""The event loop itself compresses up to this size, which takes half a millisecond; more takes a thread."""
_PIECE_BYTES = 262_144
_MAX_HEADER_BYTES = 256
_LEVEL = 1  # higher levels take more time than they save on a network
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_VARY: Header = (b"vary", b"accept-encoding")
_COMPRESSED_TYPES = (PARQUET.encode(), b"image/")


async def compress(
    request_headers: Iterable[Header], content_headers: Iterable[Header], pieces: Sequence[bytes], size: int
) -> tuple[Sequence[bytes], Sequence[Header]]:
    """Return the body of a response as the client prefers it, and the headers of its coding.

    Args:
        request_headers: the headers of the request.
        content_headers: the headers that describe the body.
        pieces: the body.
        size: its size in bytes.
    """
    if size < MIN_COMPRESSED_BYTES or not _is_compressible(content_headers):
        return pieces, ()
    if not (coding := accepted_coding(request_headers)):
        return pieces, (_VARY,)
    if size <= _MAX_INLINE_BYTES:
        compressed = _compress(coding, pieces)
    else:
        compressed = await asyncio.to_thread(_compress, coding, pieces)
    if len(compressed) >= size:
        return pieces, (_VARY,)
    cuts = range(0, len(compressed), _PIECE_BYTES)
    return [compressed[cut : cut + _PIECE_BYTES] for cut in cuts], (
        (b"content-encoding", coding.encode()),
        _VARY,
    )


def compressing(request_headers: Iterable[Header], send: Send) -> Send:
    """Return a `send` that compresses responses of one part, which have a `Content-Length`.

    It passes head and parts of a stream on as they are, so that each of them reaches the client at once.
    """
    head: Message | None = None

    async def send_compressed(message: Message) -> None:
        nonlocal head
        if message["type"] == "http.response.start" and _has_length(message["headers"]):
            head = message
            return
        if head is not None:
            started, head = head, None
            if not message.get("more_body"):
                await _compress_message(request_headers, started, message)
            await send(started)
        await send(message)

    return send_compressed


async def _compress_message(request_headers: Iterable[Header], start: Message, body: Message) -> None:
    content: bytes = body.get("body", b"")
    pieces, added = await compress(request_headers, start["headers"], [content], len(content))
    if len(added) > 1:
        body["body"] = b"".join(pieces)
        length = (b"content-length", str(len(body["body"])).encode())
        kept = [
            # The compressed body differs in its bytes, not in its content, which a weak tag identifies.
            (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
            for name, value in start["headers"]
            if name != b"content-length"
        ]
        start["headers"] = [*kept, length]
    start["headers"] = [*start["headers"], *added]


def accepted_coding(headers: Iterable[Header]) -> str | None:
    """Return the coding that a client prefers; None if it prefers none."""
    value = b",".join([value for name, value in headers if name == b"accept-encoding"])
    return _choose(value) if 0 < len(value) <= _MAX_HEADER_BYTES else None


@lru_cache(256)
def _choose(accepted: bytes) -> str | None:
    weights = {}
    for item in accepted.decode("latin-1").lower().split(","):
        coding, _, parameter = map(str.strip, item.partition(";"))
        weights[ALIASES.get(coding, coding)] = _weight(parameter)
    # zstd is faster, but a client that accepts `*` more likely has gzip.
    weight, coding = max(
        (weights.get("gzip", weights.get("*", 0.0)), "gzip"), (weights.get("zstd", 0.0), "zstd")
    )
    return coding if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameter: str) -> float:
    """Return the weight of a coding, 0 if it is malformed."""
    if not parameter:
        return 1.0
    match = _WEIGHT.fullmatch(parameter)
    return float(match[1]) if match else 0.0


def _is_compressible(content_headers: Iterable[Header]) -> bool:
    return not any(
        name == b"content-encoding" or (name == b"content-type" and value.startswith(_COMPRESSED_TYPES))
        for name, value in content_headers
    )


def _has_length(content_headers: Iterable[Header]) -> bool:
    return any(name == b"content-length" for name, _ in content_headers)


def _compress(coding: str, pieces: Sequence[bytes]) -> bytes:
    if coding == "gzip":
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        return b"".join([*map(compressor.compress, pieces), compressor.flush()])
    compressed: bytes = pa.Codec("zstd", compression_level=_LEVEL).compress(b"".join(pieces), asbytes=True)
    return compressed
