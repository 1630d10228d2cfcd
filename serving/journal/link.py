"""The front's side of the journal's process: starts it, again if it dies, and speaks with it."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from serving.journal.frames import Frame, Kind, read

log = logging.getLogger("serving.journal")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_SECONDS_TO_END = 15.0


class Link:
    """Sends frames, and again those that were not answered where the process died.

    `hear` is called with each frame that comes.
    """

    def __init__(self, opening: bytes, hear: Callable[[Frame], None]) -> None:
        self._opening, self._hear = Frame(Kind.OPEN, 0, opening), hear
        self._asked: dict[int, Frame] = {}
        self._unsent: deque[Frame] = deque()
        self._number, self._more = 0, asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, unless it was started."""
        self._running = self._running or asyncio.get_running_loop().create_task(self._run())

    def send(self, kind: Kind, payload: bytes) -> int:
        """Have this sent, in the order of the calls; gives its number, by which it is answered."""
        self._number += 1
        frame = self._asked[self._number] = Frame(kind, self._number, payload)
        self._unsent.append(frame)
        self._more.set()
        return self._number

    def forget(self, number: int) -> None:
        """Expect no answer to a frame; it is not sent again."""
        self._asked.pop(number, None)

    def kill(self) -> None:
        """End the process now."""
        if self.process:
            self.process.kill()

    async def aclose(self) -> None:
        """Have the process write what it has, and end."""
        if self._running is None:
            return
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        if self.process:
            try:
                await asyncio.to_thread(self.process.wait, _SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self.process.kill()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._serve()
            except OSError as error:  # the system has no room for a process
                log.error("the journal's process could not be started: %s", error)
            if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            log.warning("the journal's process has ended, and is started again in %g s", pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _serve(self) -> None:
        """Speak with a new process until it ends."""
        stream, writer = await asyncio.open_unix_connection(sock=self._launch())
        self._unsent = deque([self._opening, *self._asked.values()])
        self._more.set()
        sending = asyncio.create_task(self._send(writer))
        try:
            while frame := await read(stream):
                if frame.kind in (Kind.WRITTEN, Kind.ANSWER):
                    self._asked.pop(frame.number, None)
                self._hear(frame)
        finally:
            sending.cancel()
            writer.close()
        assert self.process
        await asyncio.to_thread(self.process.wait)

    def _launch(self) -> socket.socket:
        """Start a process; gives the socket on which it is spoken with."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-m", "serving.journal.writer", str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return ours

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # the reader sees it too
            while True:
                while self._unsent:
                    frame = self._unsent.popleft()
                    if frame is self._opening or frame.number in self._asked:
                        writer.writelines(frame.pack())
                        await writer.drain()
                self._more.clear()
                await self._more.wait()
