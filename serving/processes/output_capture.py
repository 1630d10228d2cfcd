"""Captures the output of model processes as lines of the log, labelled with the model version.

Model code can neither forge a log line of the front nor hide one. Excessive output is dropped, and the number
of dropped lines is logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serving.telemetry.rate_limit import FixedWindow
from serving.text import shorten

log = logging.getLogger("serving.output")
_MAX_LINES = 100
_MAX_LINE_BYTES = 4000
_READ_BYTES, _MAX_FINAL_READS = 65536, 16
_MAX_BYTES_PER_SECOND = 2**20
"""A process that writes more blocks until the second is over."""


class OutputCapture:
    """Logs the output of a process and its children.

    Args:
        log_context: Fields of the log lines.
        on_end: Called when all writers have closed the pipe, or after `close`.
    """

    def __init__(self, log_context: Mapping[str, Any], on_end: Callable[[OutputCapture], None]) -> None:
        self._log_context, self._on_end = log_context, on_end
        self._loop = asyncio.get_running_loop()
        self._lines = FixedWindow(_MAX_LINES, self._loop.time)
        self._bytes = FixedWindow(_MAX_BYTES_PER_SECOND, self._loop.time)
        self._partial_line, self._dropped_lines = b"", 0
        self.last = ""
        """The last line, also if it was dropped."""
        self._pause_timer: asyncio.TimerHandle | None = None
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._listen()

    def close(self) -> None:
        """Log the output that is in the pipe and close it; writers then get EPIPE."""
        for _ in range(_MAX_FINAL_READS):
            if not self._read():
                break
        self._end()

    def _listen(self) -> None:
        self._loop.add_reader(self._read_end, self._read)

    def _read(self) -> bool:
        """Log the next piece of output; return false if there is none."""
        try:
            data = os.read(self._read_end, _READ_BYTES) if self._read_end >= 0 else b""
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        self._feed(data)
        if self._bytes.acquire(len(data)) < len(data):
            self._loop.remove_reader(self._read_end)
            self._pause_timer = self._loop.call_later(1.0, self._listen)
        return True

    def _end(self) -> None:
        if self._read_end < 0:
            return
        if self._pause_timer:
            self._pause_timer.cancel()
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        self._read_end = -1
        self._log(self._partial_line)
        self._log_dropped()
        self._on_end(self)

    def _feed(self, data: bytes) -> None:
        lines, newline, partial_line = data.rpartition(b"\n")
        if newline:
            self._log(self._partial_line + lines)
            self._partial_line = b""
        self._partial_line += partial_line
        if len(self._partial_line) > _MAX_LINE_BYTES:
            self._log(self._partial_line)
            self._partial_line = b""

    def _log(self, text: bytes) -> None:
        if last := text.rstrip().rpartition(b"\n")[2].strip():
            self.last = shorten(last.decode(errors="backslashreplace"), _MAX_LINE_BYTES)
        count = text.count(b"\n") + 1
        allowed = self._lines.acquire(count)
        if allowed:
            self._log_dropped()
        self._dropped_lines += count - allowed
        for line in text.split(b"\n", allowed)[:allowed]:
            if line:
                message = shorten(line.decode(errors="backslashreplace"), _MAX_LINE_BYTES)
                log.info("%s", message, extra=self._log_context)

    def _log_dropped(self) -> None:
        if self._dropped_lines:
            log.warning("dropped lines of output: %d", self._dropped_lines, extra=self._log_context)
            self._dropped_lines = 0


@contextmanager
def captured(log_context: Mapping[str, Any], outputs: set[OutputCapture]) -> Iterator[int]:
    """Yield the write end of a pipe for a process to inherit; close it in the front afterwards."""
    output = OutputCapture(log_context, outputs.discard)
    outputs.add(output)
    try:
        yield output.write_end
    finally:
        os.close(output.write_end)
