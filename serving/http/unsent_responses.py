"""Limits on response bytes that clients have not read yet."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

from serving.errors import Overloaded

LARGE_BYTES = 65536
"""A response is counted if it is larger, since it may not fit into the buffer of its connection."""
_TCP_INFO_BYTES = 192
_BYTES_ACKED_OFFSET = 120


class UnsentBytes:
    """Limits the sum of the large responses that wait for their clients to read them.

    Args:
        max_bytes: the limit; a single response may be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.used = 0
        """The bytes that are reserved at present."""

    def reserve(self, size: int) -> None:
        """Count a response that is about to be sent.

        Raises:
            Overloaded: the limit is reached.
        """
        if self.used and self.used + size > self._max_bytes:
            raise Overloaded("Too many large responses wait for their clients to read them.")
        self.used += size

    def release(self, size: int) -> None:
        """Discount what has been sent or dropped."""
        self.used -= size


def reserve(scope: Mapping[str, Any], size: int) -> None:
    """Count a response to this request if it is large.

    Raises:
        Overloaded: too many bytes wait already for clients to read them.
    """
    if size > LARGE_BYTES and (hold := scope.get("reserve")):
        hold(size)


def progress(transport: asyncio.Transport) -> tuple[str, int]:
    """Return a value that changes whenever the peer of a connection has read a part of what was sent.

    It is the number of bytes that the peer has acknowledged, where the system reports it: the buffer of the
    transport alone can stay as it is for long while a slow peer empties the larger one of the kernel.
    """
    connection = transport.get_extra_info("socket")
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as copy:
            info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return "acknowledged", int(struct.unpack_from("=Q", info, _BYTES_ACKED_OFFSET)[0])
    except (OSError, AttributeError, struct.error):
        return "buffered", transport.get_write_buffer_size()


class ReadProgress:
    """Observes whether the peer of a connection goes on reading.

    Args:
        seconds: the time for which it may read nothing of what waits.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[tuple[str, int], float] | None = None

    def has_stopped(self, transport: asyncio.Transport, now: float) -> bool:
        """Check whether the peer has read nothing for that time though bytes wait; call it repeatedly."""
        if not transport.get_write_buffer_size():
            self._last = None
            return False
        read = progress(transport)
        if self._last is None or self._last[0] != read:
            self._last = read, now
        return now - self._last[1] >= self._seconds
