"""Frames on the socket pair between the front and a model process.

A frame is a header of five bytes and a payload. The header contains the type of the frame and the length of
the payload in bytes (little endian). At most one call is in progress, so that frames need no number.

The journal's frames have another header (`serving.journal.writer_frames`) and are read by the same functions.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from enum import IntEnum

_HEADER = struct.Struct("<BI")
MAX_BYTES = 64 * 2**20
"""The default limit on the output of one call."""
MAX_REPORT_BYTES = 2**20
"""The limit on the payload of all other frames that a model process sends."""


class FrameType(IntEnum):
    """The type of a frame."""

    READY = 1
    """The model is loaded. JSON: facts that only the loaded model reveals."""
    PREDICT = 2
    """A table to predict: `InputLayout.encode`."""
    OUTPUT = 3
    """The output of the model: `model_output.encode`."""
    FAILED = 4
    """Loading or predicting raised. JSON with `error` and `traceback`."""
    STREAM = 5
    """A table of one row whose output is streamed in chunks: `InputLayout.encode`."""
    CHUNK = 6
    """One chunk of a streamed output: JSON."""
    END = 7
    """The end of a streamed output. No payload."""
    STOP = 8
    """The front cancels a stream: the model process stops after the next chunk. No payload."""
    INVALID = 9
    """The input does not match the model's type hint. JSON: a list of objects with `loc` and `msg`."""


_FRAME_TYPES = frozenset(FrameType)
_OUTPUT_TYPES = (FrameType.OUTPUT, FrameType.CHUNK)
Frame = tuple[FrameType, bytes]


def pack(kind: FrameType, payload: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    return _HEADER.pack(kind, len(payload)) + payload


class Unpacker:
    """Assembles frames from the pieces that a socket delivers.

    Args:
        max_bytes: Limit on the payload of an `OUTPUT` or a `CHUNK`.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._buffer, self._max_bytes = bytearray(), max_bytes

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes.

        Raises:
            ValueError: The bytes are not a frame, or the frame exceeds its limit.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            number, length = _HEADER.unpack_from(self._buffer)
            if number not in _FRAME_TYPES:
                raise ValueError(f"a frame of unknown type {number}")
            kind = FrameType(number)
            check_length(length, self._max_bytes if kind in _OUTPUT_TYPES else MAX_REPORT_BYTES)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


def check_length(length: int, limit: int) -> None:
    """Check the length of a payload before any of it is buffered.

    Raises:
        ValueError: The payload exceeds its limit.
    """
    if length > limit:
        raise ValueError(f"a frame of {length} bytes, more than {limit}")


def receive(connection: socket.socket) -> Frame | None:
    """Wait for the next frame and return it; return None if the peer has closed the connection."""
    frame = receive_raw(connection, _HEADER)
    return None if frame is None else (FrameType(frame[0][0]), frame[1])


def receive_raw(connection: socket.socket, header: struct.Struct) -> tuple[tuple[int, ...], bytes] | None:
    """Wait for a frame and return the fields of its header and its payload; None if the peer has closed.

    Args:
        connection: A blocking socket to a trusted peer.
        header: The layout of the header. Its last field is the length of the payload.
    """
    head = recv_exactly(connection, header.size)
    if head is None:
        return None
    *fields, length = header.unpack(head)
    payload = recv_exactly(connection, length)
    return None if payload is None else (tuple(fields), bytes(payload))


def recv_exactly(connection: socket.socket, size: int) -> bytearray | None:
    """Wait for `size` bytes and return them; return None if the peer closes the connection first."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return data
