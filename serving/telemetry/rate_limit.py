"""So many a second: what keeps a flood of lines from being one."""

from __future__ import annotations

from collections.abc import Callable


class FixedWindow:
    """Allows `most` things in each second of the clock."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most, self._clock = most, clock
        self._since, self._left = clock(), most

    def acquire(self, wanted: int = 1) -> int:
        """How many of those that are wanted are allowed."""
        if (now := self._clock()) - self._since >= 1.0:
            self._since, self._left = now, self._most
        allowed = min(wanted, self._left)
        self._left -= allowed
        return allowed
