"""State of a fork server in the front: its process, its socket, and its pending requests."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.errors import ProcessDied
from serving.processes import descendants
from serving.processes.output_capture import OutputCapture

_MAX_EXIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """A model process."""

    pid: int
    ended: asyncio.Future[int | ProcessDied]
    """Its exit code or negative signal number; `ProcessDied` if it ended together with the fork server."""


@dataclass(slots=True)
class ForkServerProcess:
    """One fork server, from its start to its end, and its pending requests."""

    control: socket.socket
    process: subprocess.Popen[bytes]
    mark: str
    scratch: tempfile.TemporaryDirectory[str] | None
    """The temporary folder of its model processes; None if none could be created."""
    output: OutputCapture
    launching: dict[int, asyncio.Future[Child]] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    outputs: set[OutputCapture] = field(default_factory=set)
    pid: int | None = None
    """The process id of the fork server once it has started; `process` is its guardian."""
    is_warm: bool = False
    """Whether it has imported its modules and responds."""
    number: int = 0
    """The number of the last request."""
    buffer: bytes = b""
    has_responded: bool = True
    """Whether it has responded to the last ping."""
    is_over: bool = False

    def send(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a request with file descriptors.

        Raises:
            OSError: The fork server has gone, or its socket is full because it does not read.
        """
        socket.send_fds(self.control, [json.dumps(request).encode() + b"\n"], fds)

    def next_number(self) -> int:
        """Return the number for the next request. The fork server replies in the order of the numbers."""
        self.number += 1
        return self.number

    def wait(self) -> int:
        """Wait until the fork server and all its descendants have ended; return its exit status."""
        self.process.send_signal(signal.SIGCONT)  # a stopped guardian could not end the fork server
        try:
            status = self.process.wait(_MAX_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        descendants.kill_marked(self.mark)
        if self.scratch:
            self.scratch.cleanup()
        return status
