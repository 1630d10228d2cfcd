"""Random bytes from model processes, fork servers and the journal writer: no crash, hang or growth."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ModelFailed, ProcessDied, Unprocessable
from serving.journal import writer_frames as journal_frames
from serving.processes import framing
from serving.processes.fork_server_process import ForkServerProcess
from serving.processes.launcher import Launcher
from serving.processes.output_capture import OutputCapture
from serving.processes.replica import Replica, ReplicaState
from serving.promotion_errors import LoadFailed

MAX_BYTES = 2**16
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5))
values = st.recursive(
    numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
error_fields = st.fixed_dictionaries(
    {}, optional={"error": values, "traceback": values, "loc": values, "msg": values, "input_schema": values}
)
payloads = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"{}", b"[]", b"[" * 5000, b"\xff", b"1" * 5000]),
    st.builds(
        lambda value: json.dumps(value).encode(), error_fields | values | st.lists(error_fields, max_size=3)
    ),
)
heads = st.builds(
    struct.Struct("<BI").pack,
    st.integers(0, 255),
    st.sampled_from([0, 1, 5, 2**16 + 1, 2**20 + 1, 2**30, 2**32 - 1]),
)
frames = st.builds(framing.pack, st.sampled_from(framing.FrameType), payloads)
streams = st.lists(st.one_of(frames, frames, heads, st.binary(max_size=20)), max_size=8).map(b"".join)


def chunks(stream: bytes, data: st.DataObject) -> Sequence[bytes]:
    """Split a stream into pieces, as a socket may."""
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    return [stream[start:end] for start, end in pairwise([0, *sorted(cuts), len(stream)])]


class Transport(asyncio.Transport):
    """A socket that records whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def write(self, data: Any) -> None:
        pass


def buffered(replica: Replica) -> int:
    return len(replica._unpacker._buffer)


@given(stream=streams, data=st.data())
def test_random_bytes_give_frames_or_an_error(stream: bytes, data: st.DataObject) -> None:
    unpacker = framing.Unpacker(MAX_BYTES)
    with suppress(ValueError):
        for chunk in chunks(stream, data):
            for kind, payload in unpacker.feed(chunk):
                assert kind in framing.FrameType
                assert len(payload) <= max(MAX_BYTES, framing.MAX_REPORT_BYTES)


@given(
    stream=streams, data=st.data(), asks=st.sampled_from(["nothing", "rows", "stream"]), loads=st.booleans()
)
def test_model_process_sending_random_bytes_responds_or_stops(
    stream: bytes, data: st.DataObject, asks: str, *, loads: bool
) -> None:
    async def feed() -> None:
        replica, transport = Replica(Launcher(), {}, MAX_BYTES), Transport()
        replica.connection_made(transport)
        outcomes: list[Any] = []
        heard: list[bytes] = []
        if loads:
            replica.data_received(framing.pack(framing.FrameType.READY, b"{}"))
            if asks != "nothing":
                replica.submit(b"rows", outcomes.append, heard.append if asks == "stream" else None)
        for chunk in chunks(stream, data):
            if not transport.is_aborted:
                replica.data_received(chunk)
            assert buffered(replica) <= len(stream)
        replica.connection_lost(None)
        assert replica.state is ReplicaState.DEAD
        assert replica.dead.done()
        if loads and asks != "nothing":
            (outcome,) = outcomes
            assert isinstance(outcome, bytes | ModelFailed | ProcessDied | Unprocessable)
        with suppress(LoadFailed, ProcessDied):
            await replica._loaded

    asyncio.run(feed())


lines = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda value: json.dumps(value).encode(),
        st.dictionaries(
            st.sampled_from(["ended", "status", "forked", "failed", "number", "pong", "pid"]), numbers
        ),
    ),
    st.sampled_from([b"[" * 60000, b"1" * 5000, b"{}", b"null"]),
)


@given(sent=st.lists(lines, max_size=8), data=st.data())
def test_random_fork_server_messages_fail_no_listener(sent: list[bytes], data: st.DataObject) -> None:
    async def feed() -> None:
        launcher, (ours, theirs) = Launcher(), socket.socketpair()
        server = ForkServerProcess(ours, None, "", None, OutputCapture({}, lambda _: None))  # type: ignore[arg-type]
        launched = server.launching[1] = asyncio.get_running_loop().create_future()
        server.number = 2
        stream = b"\n".join(sent) + b"\n"
        with ours, theirs:
            ours.setblocking(False)
            for chunk in chunks(stream, data):
                theirs.sendall(chunk)
            theirs.shutdown(socket.SHUT_WR)
            await launcher._receive(server)
        assert len(server.buffer) <= 65536
        assert len(server.children) <= 1
        if launched.done() and (error := launched.exception()):
            assert isinstance(error, ProcessDied)
        os.close(server.output.write_end)
        server.output.close()

    asyncio.run(feed())


@given(stream=st.lists(st.binary(max_size=40) | heads, max_size=6).map(b"".join), data=st.data())
def test_journal_writer_output_is_read_or_rejected(stream: bytes, data: st.DataObject) -> None:
    async def feed() -> None:
        reader = asyncio.StreamReader()
        for chunk in chunks(stream, data):
            reader.feed_data(chunk)
        reader.feed_eof()
        with suppress(ValueError):
            while frame := await journal_frames.read(reader):
                assert len(frame.payload) <= len(stream)

    asyncio.run(feed())


@pytest.mark.parametrize("kind", framing.FrameType)
def test_frame_above_its_limit_is_rejected_by_header(kind: framing.FrameType) -> None:
    unpacker = framing.Unpacker(MAX_BYTES)
    limit = (
        MAX_BYTES if kind in (framing.FrameType.OUTPUT, framing.FrameType.CHUNK) else framing.MAX_REPORT_BYTES
    )
    with pytest.raises(ValueError, match=f"more than {limit}"):
        list(unpacker.feed(struct.pack("<BI", kind, limit + 1)))
