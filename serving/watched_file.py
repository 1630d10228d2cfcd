"""Holds the content of a file that may change at any time, such as the file of API keys."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import ServingError

READABLE, UNREADABLE, STALE = "readable", "unreadable", "stale"
POLL_INTERVAL_SECONDS = 1.0

T = TypeVar("T", bound=Sized)


class WatchedFile(Generic[T]):
    """Reads a file again within a second after a change.

    While the file cannot be read, as during a write, its last content stays valid. After `stale_seconds` it
    is stale: entries that were removed from the file would otherwise stay valid.

    Args:
        file: the path.
        read: returns the content; raises a ServingError if that is not possible.
        describe: the file and its entries in log lines.
        log: where reads are logged.
        clock: a monotonic clock.
        stale_seconds: time for which the last content of an unreadable file stays valid.
        on_change: called with the content after each read but the first.

    Raises:
        ServingError: the file cannot be read at the start.
    """

    def __init__(
        self,
        file: Path,
        read: Callable[[Path], T],
        describe: tuple[str, str],
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        stale_seconds: float = math.inf,
        on_change: Callable[[T], None] = lambda content: None,
    ) -> None:
        self._file, self._read, self._describe, self._log = file, read, describe, log
        self._clock, self._stale_seconds, self._on_change = clock, stale_seconds, on_change
        self._status = self._stat()
        self.content = read(file)
        self._checked = clock()
        self._unreadable_since: float | None = None

    @property
    def state(self) -> str:
        """Return whether the last attempt to read the file succeeded, or its content is stale."""
        return STALE if self.is_stale else READABLE if self.is_readable else UNREADABLE

    @property
    def is_readable(self) -> bool:
        """Check whether the last attempt to read the file succeeded."""
        return self._unreadable_since is None

    @property
    def is_stale(self) -> bool:
        """Check whether the file has been unreadable for too long."""
        since = self._unreadable_since
        return since is not None and self._clock() - since >= self._stale_seconds

    def refresh(self) -> None:
        """Read the file if it may have changed; do nothing within a second after the last check."""
        now = self._clock()
        if now - self._checked < POLL_INTERVAL_SECONDS:
            return
        self._checked = now
        status = self._stat()
        if status != self._status or self._unreadable_since is not None:
            self._load(status)

    def reload(self) -> None:
        """Read the file now, even if it seems unchanged."""
        self._checked = self._clock()
        self._load(self._stat())

    def _load(self, status: tuple[int, ...] | None) -> None:
        name, entries = self._describe
        try:
            self.content = self._read(self._file)
        except ServingError as error:
            if self._unreadable_since is None:
                self._unreadable_since = self._checked
                message = "cannot read the %s; its last %s stay valid for %g s: %s"
                self._log.error(message, name, entries, self._stale_seconds, error)
            return
        self._status, self._unreadable_since = status, None
        self._on_change(self.content)
        self._log.info("reloaded the %s: %d %s", name, len(self.content), entries)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
