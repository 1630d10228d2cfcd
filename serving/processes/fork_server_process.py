"""One fork server as the front sees it: its process, its socket, and what it was asked for."""

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

_MAX_SECONDS_TO_END = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """A model process: its id, and its exit code (or the negative signal) when it ends.

    Instead the death of the fork server, where that took it along.
    """

    pid: int
    ended: asyncio.Future[int | ProcessDied]


@dataclass(slots=True)
class ForkServerProcess:
    """One fork server, from its start to its end, and what it has been asked for."""

    control: socket.socket
    process: subprocess.Popen[bytes]
    mark: str
    scratch: tempfile.TemporaryDirectory[str] | None
    """The temporary folder of its model processes; None where none can be made."""
    output: OutputCapture
    launching: dict[int, asyncio.Future[Child]] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    outputs: set[OutputCapture] = field(default_factory=set)
    pid: int | None = None
    """The process itself, once it has started; `process` is its guardian."""
    is_warm: bool = False
    """Whether it has imported its modules, and answers."""
    number: int = 0
    """The number of the last request to it."""
    text: bytes = b""
    has_answered: bool = True
    """Whether it has answered the last ping."""
    is_over: bool = False

    def send(self, request: Mapping[str, Any], handles: Sequence[int] = ()) -> None:
        """Send a request; raises OSError where it has gone, or has not read for long."""
        socket.send_fds(self.control, [json.dumps(request).encode() + b"\n"], handles)

    def next_number(self) -> int:
        """Return the number for a request; they are answered in their order."""
        self.number += 1
        return self.number

    def wait(self) -> int:
        """Wait until it and all that its model processes started have ended; return its status."""
        self.process.send_signal(signal.SIGCONT)  # a guardian that is stopped could not end it
        try:
            status = self.process.wait(_MAX_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        descendants.kill_marked(self.mark)
        if self.scratch:
            self.scratch.cleanup()
        return status
