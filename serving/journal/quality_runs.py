"""Write the recent quality of versions to MLflow, to a run of its own for each version."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from functools import partial

from serving.errors import RegistryError
from serving.journal.quality import QualityWindow
from serving.registry.client import RegistryClient
from serving.registry.metric_runs import QualityRun, log_quality

log = logging.getLogger("serving.journal")
_RETRY_SECONDS = 30.0
_MAX_NAME_LENGTH = 250
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]", re.ASCII)


class QualityRunReporter:
    """Writes the quality that has changed; what MLflow rejects is repeated, and is never fatal.

    Several fronts that share a journal write the same points; MLflow stores equal points once.
    """

    def __init__(self, registry: RegistryClient) -> None:
        self._registry = registry
        self._pending: dict[tuple[str, str, str], QualityWindow] = {}
        self._written: dict[tuple[str, str, str], QualityWindow] = {}
        self._has_work = asyncio.Event()
        self._is_failing = False

    def enqueue(self, windows: Sequence[QualityWindow]) -> None:
        """Queue the quality of versions in place of what was queued before."""
        self._written = {w.key: self._written[w.key] for w in windows if w.key in self._written}
        self._pending = {w.key: w for w in windows if self._written.get(w.key) != w}
        self._has_work.set()

    async def run(self) -> None:
        """Write what is queued until cancelled."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            if not await self.flush():
                await asyncio.sleep(_RETRY_SECONDS)
                self._has_work.set()

    async def flush(self) -> bool:
        """Write what is queued until the registry rejects it; return whether all of it is written."""
        for key, window in list(self._pending.items()):
            target = QualityRun(window.model, window.label, window.run_id)
            try:
                await self._registry.run(partial(log_quality, target, metrics_of(window), window.at))
            except RegistryError as error:
                if not self._is_failing:
                    log.warning("the quality of versions could not be written to a run in MLflow: %s", error)
                self._is_failing = True
                return False
            self._is_failing, self._written[key] = False, window
            if self._pending.get(key) is window:
                del self._pending[key]
        return True


def metrics_of(window: QualityWindow) -> dict[str, float]:
    """Return the metrics by names that MLflow accepts: `f1`, `f1/class/setosa`, `f1/slice/region/north`."""
    metrics = {}
    for metric, label, where, value in window.values:
        part = f"/class/{label}" if label else f"/slice/{where.replace('=', '/', 1)}" if where else ""
        metrics[_NOT_IN_NAMES.sub("_", f"{metric}{part}")[:_MAX_NAME_LENGTH]] = value
    return metrics
