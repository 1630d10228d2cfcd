"""What model processes print, as lines of the log that tell whose they are.

Whatever model code writes to its standard output or error can neither pass for a line of the front nor hide
one; a flood of it is cut short, and told.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serving.telemetry.rate_limit import FixedWindow

log = logging.getLogger("serving.output")
_MAX_LINES = 100
_MAX_LINE_BYTES = 4000
_PIECE_BYTES, _MOST_PIECES = 65536, 16
_MAX_BYTES = 2**20
"""So much is read in a second; a process that writes more has to wait until that is over."""


class OutputCapture:
    """The output of a process, which holds `theirs` until it ends, and of its children.

    `told` is what each line tells of the process; `gone` is called once nothing more will come.
    """

    def __init__(self, told: Mapping[str, Any], gone: Callable[[OutputCapture], None]) -> None:
        self._told, self._gone = told, gone
        self._loop = asyncio.get_running_loop()
        self._lines = FixedWindow(_MAX_LINES, self._loop.time)
        self._bytes = FixedWindow(_MAX_BYTES, self._loop.time)
        self._begun, self._left_out = b"", 0
        self.last = ""
        """The last line, also where it was left out of the log."""
        self._resting: asyncio.TimerHandle | None = None
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._listen()

    def close(self) -> None:
        """Tell what is there, and read no more; whoever goes on to write is told so by the system."""
        for _ in range(_MOST_PIECES):
            if not self._read():
                break
        self._end()

    def _listen(self) -> None:
        self._loop.add_reader(self._ours, self._read)

    def _read(self) -> bool:
        """Tell what is there; false if there is nothing."""
        try:
            data = os.read(self._ours, _PIECE_BYTES) if self._ours >= 0 else b""
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        self._hear(data)
        if self._bytes.acquire(len(data)) < len(data):
            self._loop.remove_reader(self._ours)
            self._resting = self._loop.call_later(1.0, self._listen)
        return True

    def _end(self) -> None:
        if self._ours < 0:
            return
        if self._resting:
            self._resting.cancel()
        self._loop.remove_reader(self._ours)
        os.close(self._ours)
        self._ours = -1
        self._tell(self._begun)
        self._tell_what_was_left_out()
        self._gone(self)

    def _hear(self, data: bytes) -> None:
        whole, newline, begun = data.rpartition(b"\n")
        if newline:
            self._tell(self._begun + whole)
            self._begun = b""
        self._begun += begun
        if len(self._begun) > _MAX_LINE_BYTES:
            self._tell(self._begun)
            self._begun = b""

    def _tell(self, text: bytes) -> None:
        if last := text.rstrip().rpartition(b"\n")[2].strip():
            self.last = last[:_MAX_LINE_BYTES].decode(errors="backslashreplace")
        wanted = text.count(b"\n") + 1
        allowed = self._lines.acquire(wanted)
        if allowed:
            self._tell_what_was_left_out()
        self._left_out += wanted - allowed
        for line in text.split(b"\n", allowed)[:allowed]:
            if line:
                log.info("%s", line[:_MAX_LINE_BYTES].decode(errors="backslashreplace"), extra=self._told)

    def _tell_what_was_left_out(self) -> None:
        if self._left_out:
            log.warning("lines that were left out: %d", self._left_out, extra=self._told)
            self._left_out = 0


@contextmanager
def inherited(told: Mapping[str, Any], outputs: set[OutputCapture]) -> Iterator[int]:
    """Return the end of a pipe to give to a process in the block that follows."""
    output = OutputCapture(told, outputs.discard)
    outputs.add(output)
    try:
        yield output.theirs
    finally:
        os.close(output.theirs)
