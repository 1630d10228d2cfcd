"""Write the quality of versions to MLflow, as metrics of their training runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from serving.errors import ReferenceNotFound, RegistryError
from serving.journal.quality import Quality
from serving.registry.client import RegistryClient
from serving.registry.metric_runs import log_metrics

log = logging.getLogger("serving.journal")
RunKey = tuple[str, str, str]
_INTERVAL_SECONDS = 60.0
_RETRY_SECONDS = 5.0


class MetricsReporter:
    """Writes the metrics of a version at most once per minute, and retries what the registry rejects.

    Several fronts that share a journal may write the same point; MLflow stores equal points once.
    """

    def __init__(self, registry: RegistryClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._pending: dict[RunKey, Quality] = {}
        self._written: dict[RunKey, Quality] = {}
        self._written_at: dict[RunKey, float] = {}
        self._has_work = asyncio.Event()
        self._failing: set[RunKey] = set()

    def enqueue(self, qualities: Sequence[Quality]) -> None:
        """Queue the metrics of versions; later ones replace them."""
        for quality in qualities:
            if quality.run_id and self._written.get(quality.key) != quality:
                self._pending[quality.key] = quality
        self._has_work.set()

    async def run(self) -> None:
        """Write the queued metrics until cancelled."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._pending:
                await self.flush()
                if self._pending:
                    await asyncio.sleep(_RETRY_SECONDS)

    async def flush(self, *, now: bool = False) -> None:
        """Write the metrics that are due, or all of them with `now`, until the registry rejects one."""
        for key, quality in list(self._pending.items()):
            written_at = self._written_at.get(key, -_INTERVAL_SECONDS)
            if not now and self._clock() - written_at < _INTERVAL_SECONDS:
                continue
            try:
                await self._write(quality)
            except RegistryError as error:
                self._log_failure(quality, error)
                self._pending[key] = self._pending.pop(key)  # the others come first at the next attempt
                if not now:
                    return
            else:
                self._failing.discard(key)
                self._written[key], self._written_at[key] = quality, self._clock()
                if self._pending.get(key) is quality:
                    del self._pending[key]

    async def _write(self, quality: Quality) -> None:
        assert quality.run_id
        values = quality.metrics | {"feedback_count": quality.feedback}
        metrics = {f"serving.{name}": float(value) for name, value in values.items()}
        try:
            call = partial(
                log_metrics, quality.run_id, quality.model_id, metrics, quality.feedback, quality.at
            )
            await self._registry.run(call)
        except ReferenceNotFound:
            message = "run %s was deleted; the quality of its model is not written"
            log.info(message, quality.run_id, extra=_log_context(quality))

    def _log_failure(self, quality: Quality, error: RegistryError) -> None:
        if quality.key not in self._failing:
            self._failing.add(quality.key)
            message = "the quality of version %s of %s could not be written to MLflow: %s"
            log.warning(message, quality.label, quality.model, error, extra=_log_context(quality))


def _log_context(quality: Quality) -> dict[str, str]:
    return {"model": quality.model, "version": quality.label}
