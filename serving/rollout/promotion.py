"""Point the primary reference at a challenger that has completed its canary."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from serving.errors import RegistryError
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.registry.reference_target import point
from serving.tasks import BackgroundTasks
from serving.version import Version

log = logging.getLogger("serving.canary")
_RETRY_SECONDS = 5.0


class Promoter:
    """Writes the new version of a reference; a write that fails is reported and repeated.

    Several fronts may write at the same moment: all of them write the same version, and none writes if the
    reference names another version than the one with which the challenger was compared.

    Attributes:
        problem: why the last attempt failed; empty if it did not.
    """

    def __init__(self, registry: RegistryClient, tasks: BackgroundTasks) -> None:
        self._registry, self._tasks = registry, tasks
        self._is_writing, self._due = False, 0.0
        self.problem = ""

    def start(
        self, reference: Reference, new: Version, old: Version, done: Callable[[Version], None]
    ) -> None:
        """Write in the background, unless a write is under way or the last one failed a moment ago.

        Args:
            reference: the reference to change.
            new: the version that it will name.
            old: the version that it must name before.
            done: called with `new` after the write.
        """
        if new.version and not self._is_writing and time.monotonic() >= self._due:
            self._is_writing = True
            self._tasks.spawn(self._write(reference, new, old, done))

    async def _write(
        self, reference: Reference, new: Version, old: Version, done: Callable[[Version], None]
    ) -> None:
        assert new.version
        try:
            await self._registry.run(partial(point, reference, new.version, old.version))
        except RegistryError as error:
            self._report(new, f"{reference} could not be pointed at it: {error}")
        else:
            self.problem = ""
            log.info("%s now names %s, whose canary is complete", reference, new, extra=new.in_logs)
            done(new)
        finally:
            self._is_writing, self._due = False, time.monotonic() + _RETRY_SECONDS

    def _report(self, new: Version, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s completed its canary, but %s", new, problem, extra=new.in_logs)
        self.problem = problem
