"""The chunks of a streamed output, on their way from the model process to one client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from serving.errors import Overloaded
from serving.processes.replica import Replica

_MIN_BUFFER_BYTES = 65536
"""Bytes that each stream may buffer for a slow client."""
_MAX_BUFFER_BYTES = 2**20
"""Bytes that a stream may buffer after it has reserved memory for them."""
_CHUNK_OVERHEAD_BYTES = 100
_MAX_STALL_SECONDS = 1.0
_STALL_DIVISOR = 4


class ChunkStream:
    """Buffers the chunks of one output, with flow control in both directions.

    The time limit applies to each chunk. It is suspended while the buffer is full because the client does not
    read. Chunks are buffered so that the model is soon available for other requests. Once the buffer is full,
    the model process is paused; the stream then ends as soon as other requests wait for the model.

    Args:
        seconds: the longest time that the model may take for a chunk.
        reserve: reserves memory for buffered bytes, or raises `Overloaded`.
    """

    def __init__(self, seconds: float, reserve: Callable[[int], None] | None = None) -> None:
        self.has_chunks = False
        """Whether a chunk has arrived."""
        self._seconds = seconds
        self._buffer: deque[bytes] = deque()
        self._size, self._max_size = 0, _MIN_BUFFER_BYTES
        self._reserve = reserve
        self._paused = False
        self._consumed = 0
        """Number of chunks that the client has received."""
        self._has_data, self._ended = asyncio.Event(), False
        self._process: Replica | None = None
        self._hung: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: Callable[[], None] = lambda: None
        self._stall_timer: asyncio.TimerHandle | None = None

    # -- from the model process

    def attach(self, process: Replica, hung: Callable[[], None], stalled: Callable[[], None]) -> None:
        """Attach the model process that produces the chunks.

        Args:
            process: the model process.
            hung: is called if a chunk takes too long.
            stalled: is called repeatedly while the process is paused because the client does not read.
        """
        self._process, self._hung, self._stalled = process, hung, stalled
        self._restart_timer()

    def feed(self, chunk: bytes) -> None:
        """Buffer a chunk from the model process."""
        assert self._process is not None
        self.has_chunks = True
        if self._ended:
            return
        self._buffer.append(chunk)
        self._size += len(chunk) + _CHUNK_OVERHEAD_BYTES
        self._has_data.set()
        self._restart_timer()
        if self._size > self._max_size and not self._paused and not self._extend():
            self._paused = True
            self._process.pause()
            self._cancel_timer()
            self._watch_client()

    def detach(self) -> None:
        """Detach the model process, which has finished or died."""
        self._cancel_timer()
        self._process, self._paused = None, False
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    # -- to the client

    def end(self) -> None:
        """End the stream; ask a process that has not finished to stop."""
        self._ended = True
        self._has_data.set()
        if self._process is not None:
            self._process.stop()
            self._restart_timer()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks as they arrive, until the stream ends."""
        while not self._ended or self._buffer:
            if not self._buffer:
                self._has_data.clear()
                await self._has_data.wait()
                continue
            chunk = self._buffer.popleft()
            self._size -= len(chunk) + _CHUNK_OVERHEAD_BYTES
            self._consumed += 1
            yield chunk
            if self._process is not None and self._paused and self._size <= self._max_size // 2:
                self._paused = False
                self._process.resume()
                self._restart_timer()

    def _extend(self) -> bool:
        """Enlarge the buffer if memory is available, and return whether it was enlarged."""
        if self._reserve is None or self._max_size == _MAX_BUFFER_BYTES:
            return False
        try:
            self._reserve(_MAX_BUFFER_BYTES)
        except Overloaded:
            return False
        self._max_size = _MAX_BUFFER_BYTES
        return True

    def _watch_client(self) -> None:
        """Check periodically whether the client has received a chunk in the meantime."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        seconds = min(_MAX_STALL_SECONDS, self._seconds / _STALL_DIVISOR)
        self._stall_timer = asyncio.get_running_loop().call_later(seconds, self._check_client, self._consumed)

    def _check_client(self, consumed: int) -> None:
        if self._paused and not self._ended:
            if consumed == self._consumed:
                self._stalled()
            self._watch_client()

    def _restart_timer(self) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._hung)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
