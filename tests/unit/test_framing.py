"""Frames on the socket pair are reassembled from arbitrary fragments."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.processes.framing import Frame, FrameType, Unpacker, pack, receive

frames = st.lists(st.tuples(st.sampled_from(FrameType), st.binary(max_size=50)), max_size=8)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@given(frames, st.data())
def test_fragmented_frames_are_reassembled(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(pack(*frame) for frame in sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    unpacker = Unpacker()
    received: list[Frame] = []
    for start, end in pairwise([0, *sorted(cuts), len(stream)]):
        received += unpacker.feed(stream[start:end])
    assert received == sent


def test_frame_is_complete_at_its_last_byte() -> None:
    unpacker = Unpacker()
    *first, last = pack(FrameType.OUTPUT, b"table")
    assert [list(unpacker.feed(bytes([byte]))) for byte in first] == [[]] * 9
    assert list(unpacker.feed(bytes([last]))) == [(FrameType.OUTPUT, b"table")]


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_unknown_frame_type_is_rejected(kind: int) -> None:
    with pytest.raises(ValueError, match="unknown type"):
        list(Unpacker().feed(bytes([kind, 0, 0, 0, 0])))


@pytest.mark.parametrize("payload", [b"", b"table", bytes(5_000_000)], ids=len)
def test_receive_returns_complete_frames(pair: tuple[socket.socket, socket.socket], payload: bytes) -> None:
    ours, theirs = pair
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(ours.sendall, pack(FrameType.PREDICT, payload) + pack(FrameType.READY))
        assert receive(theirs) == (FrameType.PREDICT, payload)
        assert receive(theirs) == (FrameType.READY, b"")
        sending.result()


@pytest.mark.parametrize("size", [0, 3, 5, 7])
def test_receive_returns_none_after_peer_closes(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    ours, theirs = pair
    ours.sendall(pack(FrameType.PREDICT, b"table")[:size])
    ours.shutdown(socket.SHUT_WR)
    assert receive(theirs) is None
