"""The corked transport: one write per iteration of the event loop, in order, and before a close."""

from __future__ import annotations

import asyncio

import pytest

from serving.server.response_corking import Corked

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """Records the written data."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def corked(wire: Wire) -> Corked:
    return Corked(wire, asyncio.get_running_loop())


async def test_head_and_body_leave_together(corked: Corked, wire: Wire) -> None:
    corked.write(b"head ")
    corked.write(b"body")
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"head body"]


async def test_every_loop_iteration_is_one_write(corked: Corked, wire: Wire) -> None:
    for part in (b"one", b"two"):
        corked.write(part)
        await asyncio.sleep(0)
    assert wire.writes == [b"one", b"two"]


async def test_written_data_is_sent_before_the_close(corked: Corked, wire: Wire) -> None:
    corked.write(b"last words")
    corked.close()
    assert (wire.writes, wire.closed) == ([b"last words"], True)
    await asyncio.sleep(0)
    assert wire.writes == [b"last words"]


async def test_nothing_is_written_to_a_disconnected_client(corked: Corked, wire: Wire) -> None:
    corked.write(b"too late")
    wire.close()
    await asyncio.sleep(0)
    assert wire.writes == []


async def test_other_attributes_come_from_the_transport(corked: Corked, wire: Wire) -> None:
    assert corked.abort == wire.abort
