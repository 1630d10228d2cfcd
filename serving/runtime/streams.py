"""What a model answers bit by bit, on its way from its process to one caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from serving.runtime.replica import Replica

# So many chunks may wait for a slow caller, until the model is held up too.
_MOST_WAITING = 64


class Stream:
    """The chunks of one answer.

    A chunk may take as long as a whole answer otherwise may; time in which the caller does not take what is
    there does not count.

    Args:
        seconds: the longest time that the model may take for a chunk.
    """

    def __init__(self, seconds: float) -> None:
        self.heard = False
        """Whether a chunk has come."""
        self._seconds = seconds
        self._waiting: deque[bytes] = deque()
        self._more, self._over = asyncio.Event(), False
        self._process: Replica | None = None
        self._hung: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None

    # -- from the model process

    def begin(self, process: Replica, hung: Callable[[], None]) -> None:
        """The process has been asked; `hung` is called if it is silent for too long."""
        self._process, self._hung = process, hung
        self._wind()

    def hear(self, chunk: bytes) -> None:
        """The process has told a chunk."""
        assert self._process is not None
        self.heard = True
        if self._over:
            return
        self._waiting.append(chunk)
        self._more.set()
        self._wind()
        if len(self._waiting) == _MOST_WAITING:
            self._process.pause()
            self._unwind()

    def left(self) -> None:
        """The process has no more to tell, or is no more."""
        self._unwind()
        self._process = None

    # -- to the caller

    def end(self) -> None:
        """No chunk comes any more; a process that is not done yet is to stop."""
        self._over = True
        self._more.set()
        if self._process is not None:
            self._process.stop()
            self._wind()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Each chunk, waited for, until there are no more."""
        while not self._over or self._waiting:
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
                continue
            yield self._waiting.popleft()
            if self._process is not None and len(self._waiting) == _MOST_WAITING // 2:
                self._process.resume()
                self._wind()

    def _wind(self) -> None:
        self._unwind()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._hung)

    def _unwind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
