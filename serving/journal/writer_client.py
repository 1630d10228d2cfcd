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

from serving.journal.framing import Frame, FrameType, read
from serving.processes.descendants import StopDetector
from serving.supervision import Component, Supervisor

log = logging.getLogger("serving.journal")
_SECONDS_TO_END = 15.0
_SECONDS_BETWEEN_LOOKS = 1.0


class WriterClient:
    """Sends frames, and again those that were not answered where the process died.

    `hear` is called with each frame that comes.
    """

    def __init__(
        self, opening: bytes, hear: Callable[[Frame], None], supervisor: Supervisor | None = None
    ) -> None:
        self._opening, self._hear = Frame(FrameType.OPEN, 0, opening), hear
        self._asked: dict[int, Frame] = {}
        self._unsent: deque[Frame] = deque()
        self._number, self._more = 0, asyncio.Event()
        self._supervisor = supervisor or Supervisor()
        self._component: Component | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, unless it was started."""
        self._component = self._component or self._supervisor.start("journal writer", self._serve)

    def send(self, kind: FrameType, payload: bytes) -> int:
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
        if self._component is None:
            return
        self._component.stop()
        await self._component.wait()
        if self.process:
            try:
                await asyncio.to_thread(self.process.wait, _SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self.process.kill()

    async def _serve(self) -> None:
        """Exchange frames with a new process until it ends."""
        stream, writer = await asyncio.open_unix_connection(sock=self._launch())
        assert self.process
        self._unsent = deque([self._opening, *self._asked.values()])
        self._more.set()
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._send(writer)),
                    group.create_task(self._watch(self.process)),
                ]
                await self._receive(stream)
                for helper in helpers:
                    helper.cancel()
        except Exception:
            self.process.kill()  # what it has not confirmed is sent to its successor
            raise
        finally:
            writer.close()
        await asyncio.to_thread(self.process.wait)

    async def _receive(self, stream: asyncio.StreamReader) -> None:
        while frame := await read(stream):
            if frame.kind in (FrameType.WRITTEN, FrameType.ANSWER):
                self._asked.pop(frame.number, None)
            self._hear(frame)

    @staticmethod
    async def _watch(process: subprocess.Popen[bytes]) -> None:
        """Kill the process if it stays stopped."""
        stopped = StopDetector()
        while not stopped.detects(process.pid):  # noqa: ASYNC110 — the system sends no event
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        log.error("the journal writer was stopped by a signal, and is replaced")
        process.kill()

    def _launch(self) -> socket.socket:
        """Start a process, and return the socket that is connected to it."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                ours.setblocking(False)
                command = [sys.executable, "-m", "serving.journal.writer", str(theirs.fileno())]
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        except BaseException:
            ours.close()
            raise
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
