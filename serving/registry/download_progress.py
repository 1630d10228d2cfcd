"""When a download received something last, as its threads and the one that watches its folder report it."""

from __future__ import annotations

import time


class DownloadProgress:
    """The progress of one download, shared by all of its threads.

    Args:
        stall_seconds: The maximum number of seconds without any progress.

    Attributes:
        has_received: Whether a part of a file was received.
    """

    def __init__(self, stall_seconds: float) -> None:
        self.stall_seconds, self.has_received = stall_seconds, False
        self._at = time.monotonic()

    def record(self) -> None:
        """Record that a part of a file was received."""
        self._at, self.has_received = time.monotonic(), True

    def extend(self) -> None:
        """Record a response that is no part of a file, such as a list of files."""
        self._at = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Return the seconds since the last progress."""
        return time.monotonic() - self._at

    @property
    def left(self) -> float:
        """Return the seconds until the download stalls; not positive if it has."""
        return self.stall_seconds - self.idle_seconds

    def is_later_than(self, moment: float) -> bool:
        """Return whether something was received after a moment of the monotonic clock."""
        return self.has_received and self._at > moment
