"""Decompression of request bodies (RFC 9110, 8.4): gzip, and zstd as in RFC 8878."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pyarrow as pa

from serving.errors import BodyTooLarge, Malformed, UnsupportedEncoding

CODINGS = ("gzip", "zstd")
ALIASES = {"x-gzip": "gzip"}
_MAX_INLINE_BYTES, _MAX_INLINE_COMPRESSED_BYTES = 65_536, 4096
"""The event loop itself decompresses up to these sizes; larger bodies take a thread.

Both are limited, since a body of many empty frames takes long and unpacks to nothing.
"""


def request_coding(values: Iterable[bytes]) -> str | None:
    """Return the coding of a request from its `Content-Encoding` headers; None if it is not compressed.

    Raises:
        UnsupportedEncoding: the coding is unknown, or there are several.
    """
    listed = b",".join(values).decode("latin-1").lower().split(",")
    codings = [coding for coding in map(str.strip, listed) if coding not in ("", "identity")]
    if not codings:
        return None
    coding = ALIASES.get(codings[0], codings[0])
    if len(codings) > 1 or coding not in CODINGS:
        raise UnsupportedEncoding(f"Send Content-Encoding: {' or '.join(CODINGS)}, once, or no such header.")
    return coding


async def decompress(coding: str, body: bytes, max_bytes: int) -> bytes:
    """Return a decompressed body, which may consist of several frames or members.

    At most one byte more than the limit is unpacked, so that a small body cannot fill the memory.

    Raises:
        BodyTooLarge: the decompressed body exceeds the limit.
        Malformed: the body is truncated or does not have this coding.
    """
    stream = pa.CompressedInputStream(pa.BufferReader(body), coding)
    is_small = len(body) <= _MAX_INLINE_COMPRESSED_BYTES
    inline = min(_MAX_INLINE_BYTES, max_bytes + 1) if is_small else 0
    try:
        content: bytes = stream.read(inline)
        # A shorter read ends with the data; the stream raises an error if that is not the end of a frame.
        if len(content) == inline:
            content += await asyncio.to_thread(stream.read, max_bytes + 1 - inline)
    except OSError:
        raise Malformed(f"The body is not complete and valid {coding} data.") from None
    if len(content) > max_bytes:
        raise BodyTooLarge(f"The body has more than {max_bytes} bytes after decompression.")
    return content
