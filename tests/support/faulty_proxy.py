"""A proxy between a front and its registry, which can fail in several ways."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from enum import Enum
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


def free_port() -> int:
    """Return a port without a listener."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


class Mode(Enum):
    """The states of the proxy."""

    OPEN = "open"
    REFUSED = "refused"
    BLACK_HOLED = "black-holed"
    FAILING = "answered with 500"
    A_PAGE = "answered with a page"
    NOISE = "answered with noise"


_ANSWERS = {
    Mode.FAILING: b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n{}",
    Mode.A_PAGE: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<h1>Please wait</h1>",
    Mode.NOISE: bytes(range(256)) * 16,
}


class FaultyProxy:
    """Listens on its own port and forwards data to a server, unless it is cut."""

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        self._target = address.hostname, address.port
        self._mode = Mode.OPEN
        self._server: asyncio.Server | None = None
        self._port = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._do(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def cut(self, mode: Mode) -> Iterator[None]:
        """Switch to another mode during a block."""
        self.switch(mode)
        yield
        self.switch(Mode.OPEN)

    def switch(self, mode: Mode) -> None:
        """Switch to a mode and end the open connections."""
        self._do(self._switch(mode))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _switch(self, mode: Mode) -> None:
        await self._hang_up()
        self._mode = mode
        if mode is not Mode.REFUSED:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _hang_up(self) -> None:
        if self._server:
            self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._under_way.add(task)
        try:
            with suppress(OSError):
                await self._answer(reader, writer)
        except asyncio.CancelledError:
            pass  # hung up; start_server would log it
        finally:
            self._under_way.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.OPEN:
            await self._pass_on(reader, writer)
        elif self._mode is Mode.BLACK_HOLED:
            await reader.read()  # until the client closes the connection
        else:
            await reader.read(65536)
            writer.write(_ANSWERS[self._mode])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        finally:
            forth.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
