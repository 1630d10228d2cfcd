"""Start the journal's process, restart it when it ends, and exchange messages with it."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from serving.journal.writer_frames import Frame, FrameType, read
from serving.processes.descendants import StopDetector
from serving.supervision import Component, Supervisor

log = logging.getLogger("serving.journal")
_EXIT_TIMEOUT_SECONDS = 15.0
_POLL_SECONDS = 1.0


class WriterClient:
    """Sends frames, and sends those without a reply again to a new process.

    Args:
        opening: The payload of the first frame to each process.
        on_frame: Is called with each frame from the process.
        supervisor: Restarts the process.
    """

    def __init__(
        self, opening: bytes, on_frame: Callable[[Frame], None], supervisor: Supervisor | None = None
    ) -> None:
        self._opening, self._on_frame = Frame(FrameType.OPEN, 0, opening), on_frame
        self._unconfirmed: dict[int, Frame] = {}
        self._unsent: deque[Frame] = deque()
        self._number, self._more = 0, asyncio.Event()
        self._supervisor = supervisor or Supervisor()
        self._component: Component | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, unless it is running."""
        self._component = self._component or self._supervisor.start("journal writer", self._serve)

    def send(self, kind: FrameType, payload: bytes) -> int:
        """Queue a frame; return its number, which the reply repeats."""
        self._number += 1
        frame = self._unconfirmed[self._number] = Frame(kind, self._number, payload)
        self._unsent.append(frame)
        self._more.set()
        return self._number

    def forget(self, number: int) -> None:
        """Stop waiting for the reply to a frame; the frame is not sent again."""
        self._unconfirmed.pop(number, None)

    def kill(self) -> None:
        """Kill the process."""
        if self.process:
            self.process.kill()

    async def aclose(self) -> None:
        """Let the process write its records and exit."""
        if self._component is None:
            return
        self._component.stop()
        await self._component.wait()
        if self.process:
            try:
                await asyncio.to_thread(self.process.wait, _EXIT_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()

    async def _serve(self) -> None:
        """Exchange frames with a new process until it ends."""
        stream, writer = await asyncio.open_unix_connection(sock=self._launch())
        assert self.process
        self._unsent = deque([self._opening, *self._unconfirmed.values()])
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
            self.process.kill()  # unconfirmed frames are sent to the next process
            raise
        finally:
            writer.close()
        await asyncio.to_thread(self.process.wait)

    async def _receive(self, stream: asyncio.StreamReader) -> None:
        while frame := await read(stream):
            if frame.kind in (FrameType.WRITTEN, FrameType.ANSWER):
                self._unconfirmed.pop(frame.number, None)
            self._on_frame(frame)

    @staticmethod
    async def _watch(process: subprocess.Popen[bytes]) -> None:
        """Kill the process if it stays stopped."""
        stopped = StopDetector()
        while not stopped.detects(process.pid):  # noqa: ASYNC110 — the system sends no event
            await asyncio.sleep(_POLL_SECONDS)
        log.error("the journal writer was stopped by a signal; it is replaced")
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
        with suppress(ConnectionError):  # the receiving side handles the end
            while True:
                while self._unsent:
                    frame = self._unsent.popleft()
                    if frame is self._opening or frame.number in self._unconfirmed:
                        writer.writelines(frame.pack())
                        await writer.drain()
                self._more.clear()
                await self._more.wait()
