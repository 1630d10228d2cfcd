"""Decides whether the version that has gone live last stays, or gives way to the one before."""

from __future__ import annotations

from collections.abc import Callable

from serving.models.failure_crosscheck import excuse
from serving.models.loaded_model import LoadedModel
from serving.models.probation import rollback_reason
from serving.models.slot import Slot
from serving.tasks import BackgroundTasks


class ProbationMonitor:
    """Judges the live version of a slot while the one before is still warm.

    Before a version is reverted for failed requests, the version before answers a sample of them: what fails
    there too does not count.
    """

    def __init__(self, slot: Slot, errands: BackgroundTasks) -> None:
        self._slot, self._errands = slot, errands
        self._checked: LoadedModel | None = None
        """The version whose failures are being checked."""

    def judge(self, revert: Callable[[LoadedModel, str], None]) -> LoadedModel | None:
        """Return the version before once it is not needed any more.

        `revert` is called with the version before and the reason, if the live one has to give way to it.
        """
        live, warm = self._slot.live, self._slot.warm
        if live is None or warm is None or self._checked is live:
            return None
        if rollback_reason(live.request_counts, warm.request_counts):
            self._checked = live
            self._errands.spawn(self._check(live, warm, revert))
        elif self._slot.probation_is_over():
            self._slot.warm = None
            return warm
        return None

    async def _check(
        self, live: LoadedModel, warm: LoadedModel, revert: Callable[[LoadedModel, str], None]
    ) -> None:
        try:
            await excuse(live.request_counts, warm, with_deaths=True)
        finally:
            self._checked = None
        is_current = self._slot.live is live and self._slot.warm is warm
        if is_current and (reason := rollback_reason(live.request_counts, warm.request_counts)):
            revert(warm, reason)
