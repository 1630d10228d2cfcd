"""Decides whether the version that went live last stays, or is reverted to its predecessor."""

from __future__ import annotations

from collections.abc import Callable

from serving.models.failure_crosscheck import excuse
from serving.models.loaded_model import LoadedModel
from serving.models.probation import rollback_reason
from serving.models.slot import Slot
from serving.tasks import BackgroundTasks


class ProbationMonitor:
    """Monitors the live version of a slot while its predecessor is still warm.

    Before a version is reverted for failed requests, its predecessor runs a sample of them: requests that
    fail there too do not count.
    """

    def __init__(self, slot: Slot, tasks: BackgroundTasks) -> None:
        self._slot, self._tasks = slot, tasks
        self._crosschecked: LoadedModel | None = None
        """The version whose failed requests the predecessor is running."""

    def check(self, revert: Callable[[LoadedModel, str], None]) -> LoadedModel | None:
        """Return the predecessor once it is no longer needed.

        `revert` is called with the predecessor and the reason if the live version fails.
        """
        live, warm = self._slot.live, self._slot.warm
        if live is None or warm is None or self._crosschecked is live:
            return None
        if rollback_reason(live.request_counts, warm.request_counts):
            self._crosschecked = live
            self._tasks.spawn(self._crosscheck(live, warm, revert))
        elif self._slot.probation_is_over():
            return self._slot.release_warm()
        return None

    async def _crosscheck(
        self, live: LoadedModel, warm: LoadedModel, revert: Callable[[LoadedModel, str], None]
    ) -> None:
        try:
            await excuse(live.request_counts, warm, with_deaths=True)
        finally:
            self._crosschecked = None
        is_current = self._slot.live is live and self._slot.warm is warm
        if is_current and (reason := rollback_reason(live.request_counts, warm.request_counts)):
            revert(warm, reason)
