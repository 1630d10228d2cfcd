"""Frames on the socket pair between the front and a model process.

A frame is five bytes of header, its kind and the length of its payload (little endian), and the payload.
There is at most one question under way, so that an answer needs no number.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from enum import IntEnum

_HEADER = struct.Struct("<BI")
MAX_BYTES = 64 * 2**20
"""The largest output of one call that a front accepts by default."""
MAX_REPORT_BYTES = 2**20
"""The largest frame of any other kind that a model process sends."""


class FrameType(IntEnum):
    """What a frame says."""

    READY = 1
    """The model process has loaded its model: JSON with what only the loaded model shows."""
    PREDICT = 2
    """A table to predict: `table.encode`."""
    ANSWER = 3
    """The model's answer: `table.encode_answer`."""
    FAILED = 4
    """Loading or predicting raised: JSON with `error` and `traceback`."""
    STREAM = 5
    """A table of one row to answer bit by bit: `table.encode`."""
    CHUNK = 6
    """A bit of the answer: JSON."""
    END = 7
    """There was no more of it; no payload."""
    STOP = 8
    """Nobody wants more of it: the model process stops after the next chunk. No payload."""
    INVALID = 9
    """The input does not fit the model's type hint: JSON with `loc` and `msg` of each fault."""


_KINDS = frozenset(FrameType)
_OUTPUTS = (FrameType.ANSWER, FrameType.CHUNK)
Frame = tuple[FrameType, bytes]


def pack(kind: FrameType, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    return _HEADER.pack(kind, len(payload)) + payload


class Unpacker:
    """Puts frames together from the pieces in which a socket gives them.

    Args:
        max_bytes: the largest payload of an `ANSWER` or a `CHUNK`.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._buffer, self._max_bytes = bytearray(), max_bytes

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole once `data` has come.

        Raises:
            ValueError: the bytes are no frame, or announce one that is too large.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            number, length = _HEADER.unpack_from(self._buffer)
            if number not in _KINDS:
                raise ValueError(f"a frame of the unknown kind {number}")
            kind = FrameType(number)
            limit = self._max_bytes if kind in _OUTPUTS else MAX_REPORT_BYTES
            if length > limit:
                raise ValueError(f"a frame of {length} bytes, more than {limit}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


def receive(connection: socket.socket) -> Frame | None:
    """The next frame, waited for; None where the other side has gone."""
    header = recv_exactly(connection, _HEADER.size)
    if header is None:
        return None
    kind, length = _HEADER.unpack(header)
    payload = recv_exactly(connection, length)
    return None if payload is None else (FrameType(kind), bytes(payload))


def recv_exactly(connection: socket.socket, size: int) -> bytearray | None:
    """So many bytes, waited for; None where the other side goes before that."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return data
