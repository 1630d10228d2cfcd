"""What the front and the journal's process send each other: numbered frames on a socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from serving.processes.framing import recv_exactly

_HEADER = struct.Struct("<BII")
_MAX_BYTES = 16 * 2**20
"""The largest payload that the journal writer sends."""


class FrameType(IntEnum):
    """What a frame says."""

    OPEN = 1
    """Which database, and for how long records are kept: JSON. The front's first frame."""
    RECORDS = 2
    """Predictions: `records.pack`."""
    FEEDBACK = 3
    """Outcomes of predictions: JSON."""
    WRITTEN = 4
    """The records of this number are in the database, but those that it refused: JSON with their count."""
    ANSWER = 5
    """What became of the feedback of this number: JSON."""
    QUALITY = 6
    """How right versions were: JSON."""
    STATE = 7
    """Why the database can't be asked: JSON; empty if it can again."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: FrameType
    number: int
    payload: bytes

    def pack(self) -> tuple[bytes, bytes]:
        """Its bytes: the header, and the payload."""
        return _HEADER.pack(self.kind, self.number, len(self.payload)), self.payload


async def read(stream: asyncio.StreamReader) -> Frame | None:
    """Return the next frame from the journal writer; None where it has gone.

    Raises:
        ValueError: the bytes are no frame, or announce one that is too large.
    """
    try:
        kind, number, length = _HEADER.unpack(await stream.readexactly(_HEADER.size))
        if length > _MAX_BYTES:
            raise ValueError(f"a frame of {length} bytes, more than {_MAX_BYTES}")
        return Frame(FrameType(kind), number, await stream.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive(connection: socket.socket) -> Frame | None:
    """The next frame, waited for; None where the other side has gone."""
    try:
        if (header := recv_exactly(connection, _HEADER.size)) is None:
            return None
        kind, number, length = _HEADER.unpack(header)
        payload = recv_exactly(connection, length)
    except ConnectionError:
        return None
    return None if payload is None else Frame(FrameType(kind), number, bytes(payload))
