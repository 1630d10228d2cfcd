"""Numbered frames on the socket pair between the front and the journal writer."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from serving.processes.framing import check_length, receive_raw

_HEADER = struct.Struct("<BII")
_MAX_BYTES = 16 * 2**20
"""The largest payload that the journal writer sends."""


class FrameType(IntEnum):
    """The type of a frame."""

    OPEN = 1
    """The first frame from the front. JSON: the database, and how long records are kept."""
    RECORDS = 2
    """Predictions: `records.pack`."""
    FEEDBACK = 3
    """Outcomes of predictions: JSON."""
    WRITTEN = 4
    """The records with this number are in the database. JSON: how many the database rejected."""
    ANSWER = 5
    """The result of the feedback with this number: JSON."""
    QUALITY = 6
    """The quality of versions, measured by feedback: JSON."""
    STATE = 7
    """JSON: why the database is unavailable; empty once it is available again."""
    RECENT_QUALITY = 8
    """The quality of versions on the predictions of the last days: JSON."""
    WATCH = 9
    """From the front: all queries for sums of outcomes, in place of those before. JSON of `Watch`."""
    OUTCOMES = 10
    """The sums of outcomes of all queries. JSON: `outcome_sums.summarize`."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: FrameType
    number: int
    payload: bytes

    def pack(self) -> tuple[bytes, bytes]:
        """Return the bytes of the header, and the payload."""
        return _HEADER.pack(self.kind, self.number, len(self.payload)), self.payload


async def read(stream: asyncio.StreamReader) -> Frame | None:
    """Wait for the next frame from the journal writer and return it; None if the writer has exited.

    Raises:
        ValueError: The bytes are not a frame, or the frame exceeds its limit.
    """
    try:
        kind, number, length = _HEADER.unpack(await stream.readexactly(_HEADER.size))
        check_length(length, _MAX_BYTES)
        return Frame(FrameType(kind), number, await stream.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive(connection: socket.socket) -> Frame | None:
    """Wait for the next frame and return it; return None if the peer has closed the connection."""
    try:
        frame = receive_raw(connection, _HEADER)
    except ConnectionError:
        return None
    if frame is None:
        return None
    (kind, number), payload = frame
    return Frame(FrameType(kind), number, payload)
