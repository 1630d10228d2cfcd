"""Tells in MLflow how right versions are: as metrics of their runs, beside those of their training."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from serving.errors import RegistryError, Unresolved
from serving.journal.quality import Quality
from serving.registry.client import RegistryClient

log = logging.getLogger("serving.journal")
_SECONDS_BETWEEN = 60.0
_SECONDS_BETWEEN_TRIES = 5.0


class Reporter:
    """Writes metrics once a minute for each run at most; what the registry does not take is tried again.

    Fronts that share a journal write the same points, which MLflow keeps once.
    """

    def __init__(self, registry: RegistryClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._pending: dict[str, Quality] = {}
        self._told: dict[str, Quality] = {}
        self._told_at: dict[str, float] = {}
        self._more = asyncio.Event()
        self._failing = False

    def tell(self, qualities: Sequence[Quality]) -> None:
        """Have this written to the runs; what is told later replaces it."""
        for each in qualities:
            if each.run_id and self._told.get(each.run_id) != each:
                self._pending[each.run_id] = each
        self._more.set()

    async def run(self) -> None:
        """Write what is told, for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._pending:
                await self.flush()
                if self._pending:
                    await asyncio.sleep(_SECONDS_BETWEEN_TRIES)

    async def flush(self, *, now: bool = False) -> None:
        """Write what is due, or all of it `now`, as far as the registry takes it."""
        for run_id, quality in list(self._pending.items()):
            if not now and self._clock() - self._told_at.get(run_id, -_SECONDS_BETWEEN) < _SECONDS_BETWEEN:
                continue
            named = quality.metrics | {"feedback_count": quality.feedback}
            metrics = {f"serving.{name}": float(value) for name, value in named.items()}
            try:
                await self._registry.log_metrics(run_id, metrics, quality.feedback, quality.at)
            except Unresolved:
                said = "run %s has gone, and what is told of its model with it"
                log.info(said, run_id, extra=_in_logs(quality))
            except RegistryError as error:
                if not self._failing:
                    said = "how right version %s of %s is could not be told: %s"
                    log.warning(said, quality.version, quality.model, error, extra=_in_logs(quality))
                self._failing = True
                return
            self._failing = False
            self._told[run_id], self._told_at[run_id] = quality, self._clock()
            if self._pending.get(run_id) is quality:
                del self._pending[run_id]


def _in_logs(quality: Quality) -> dict[str, str | None]:
    return {"model": quality.model, "version": quality.version or quality.model_id}
