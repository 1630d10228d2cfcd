"""Remembers for which models tags cannot be written, why, and when to try again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.backoff import Backoff
from serving.errors import RegistryDenied, RegistryError, RegistryRejected
from serving.version import Version

log = logging.getLogger("serving.tag_writer")
_BACKOFF = Backoff(1.0, 10.0, jitter=0.2)
_MIN_FAILURES = 3
"""Fewer failures in a row, with a registry that responds, may be a short outage."""


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    count: int
    is_denied: bool
    is_own: bool
    """Whether the failure concerns this model alone."""
    retry_at: float


class TagFailures:
    """The models with failed writes of tags since the last one that succeeded.

    Args:
        is_reachable: returns whether the last poll of the registry succeeded.
        clock: returns a monotonic time in seconds.
    """

    def __init__(
        self, is_reachable: Callable[[], bool | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_reachable, self._clock = is_reachable, clock
        self._failures: dict[str, _Failure] = {}

    def record(self, version: Version, error: RegistryError) -> None:
        """Record a failed write, and log the first one in a row."""
        before = self._failures.get(version.name)
        if before is None:
            message = "the tags of %s could not be written, will retry: %s"
            log.warning(message, version, error, extra=version.in_logs)
        is_denied = isinstance(error, RegistryDenied)
        is_own = is_denied or isinstance(error, RegistryRejected)
        # During an outage every write fails, which is no fact about the tags.
        count = (before.count if before else 0) + (1 if self._is_reachable() or is_denied else 0)
        retry_at = self._clock() + _BACKOFF.delay(count) if is_own else 0.0
        self._failures[version.name] = _Failure(str(error), count, is_denied, is_own, retry_at)

    def clear(self, version: Version) -> None:
        """Record that tags of the model can be written."""
        if self._failures.pop(version.name, None):
            log.info("the tags of %s can be written again", version, extra=version.in_logs)

    def blocks(self, version: Version) -> bool:
        """Return whether the failed write for a version stops others: not if only its model is concerned."""
        failure = self._failures.get(version.name)
        return failure is None or not failure.is_own

    def is_paused(self, name: str) -> bool:
        """Return whether the next write for a model is due later, because the last one was refused."""
        failure = self._failures.get(name)
        return failure is not None and failure.retry_at > self._clock()

    def warning(self, name: str) -> str | None:
        """Return the warning for people about the tags of a model; None if they can be written."""
        failure = self._failures.get(name)
        if failure is None or not (failure.is_denied or failure.count >= _MIN_FAILURES):
            return None
        remedy = ". Give this service's account the permission to edit the registered model"
        return (
            f"the tags of model {name} cannot be written, so MLflow does not show which version is live, nor "
            f"why one was rejected: {failure.reason}{remedy * failure.is_denied}"
        )
