"""What a model answers bit by bit, on its way from its process to one caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from serving.errors import Overloaded
from serving.processes.replica import Replica

# Chunks of this size may wait for a slow caller in any case; then so many if there is room for all streams.
_MIN_AHEAD_BYTES = 65536
_MAX_AHEAD_BYTES = 2**20
_BYTES_PER_CHUNK = 100
"""What a chunk takes beside its bytes."""
_MAX_PATIENCE_SECONDS = 1.0
_PATIENCE_FRACTION = 4


class ChunkStream:
    """The chunks of one answer.

    A chunk may take as long as a whole answer otherwise may; time in which the caller does not take what is
    there does not count. Chunks are read ahead of the caller, so that the model is soon free for others. If
    the caller reads nothing once that is exhausted, the model waits, and the answer ends as soon as others
    wait for the model too.

    Args:
        seconds: the longest time that the model may take for a chunk.
        reserve: makes room for bytes that are read ahead, or raises `Overloaded`.
    """

    def __init__(self, seconds: float, reserve: Callable[[int], None] | None = None) -> None:
        self.heard = False
        """Whether a chunk has come."""
        self._seconds = seconds
        self._waiting: deque[bytes] = deque()
        self._size, self._max_size = 0, _MIN_AHEAD_BYTES
        self._reserve = reserve
        self._paused = False
        self._taken = 0
        """Chunks that the caller has taken."""
        self._more, self._over = asyncio.Event(), False
        self._process: Replica | None = None
        self._hung: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: Callable[[], None] = lambda: None
        self._stall_timer: asyncio.TimerHandle | None = None

    # -- from the model process

    def attach(self, process: Replica, hung: Callable[[], None], stalled: Callable[[], None]) -> None:
        """Start with a process that was called.

        `hung` is called if it is silent for too long, `stalled` repeatedly while it is held up by the caller.
        """
        self._process, self._hung, self._stalled = process, hung, stalled
        self._restart_timer()

    def feed(self, chunk: bytes) -> None:
        """The process has told a chunk."""
        assert self._process is not None
        self.heard = True
        if self._over:
            return
        self._waiting.append(chunk)
        self._size += len(chunk) + _BYTES_PER_CHUNK
        self._more.set()
        self._restart_timer()
        if self._size > self._max_size and not self._paused and not self._extend():
            self._paused = True
            self._process.pause()
            self._cancel_timer()
            self._watch_caller()

    def detach(self) -> None:
        """The process has no more to tell, or is no more."""
        self._cancel_timer()
        self._process, self._paused = None, False
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    # -- to the caller

    def end(self) -> None:
        """No chunk comes any more; a process that is not done yet is to stop."""
        self._over = True
        self._more.set()
        if self._process is not None:
            self._process.stop()
            self._restart_timer()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Each chunk, waited for, until there are no more."""
        while not self._over or self._waiting:
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
                continue
            chunk = self._waiting.popleft()
            self._size -= len(chunk) + _BYTES_PER_CHUNK
            self._taken += 1
            yield chunk
            if self._process is not None and self._paused and self._size <= self._max_size // 2:
                self._paused = False
                self._process.resume()
                self._restart_timer()

    def _extend(self) -> bool:
        """Return whether more chunks may wait than before."""
        if self._reserve is None or self._max_size == _MAX_AHEAD_BYTES:
            return False
        try:
            self._reserve(_MAX_AHEAD_BYTES)
        except Overloaded:
            return False
        self._max_size = _MAX_AHEAD_BYTES
        return True

    def _watch_caller(self) -> None:
        """Report in a moment, and again, if the caller has taken nothing meanwhile."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        seconds = min(_MAX_PATIENCE_SECONDS, self._seconds / _PATIENCE_FRACTION)
        self._stall_timer = asyncio.get_running_loop().call_later(seconds, self._check_caller, self._taken)

    def _check_caller(self, taken: int) -> None:
        if self._paused and not self._over:
            if taken == self._taken:
                self._stalled()
            self._watch_caller()

    def _restart_timer(self) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._hung)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
