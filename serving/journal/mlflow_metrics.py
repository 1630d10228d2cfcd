"""Write the quality of versions to MLflow, as metrics of their training runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.errors import ReferenceNotFound, RegistryError
from serving.journal.quality import Quality
from serving.registry.client import RegistryClient

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
        try:
            await self._registry.use_client(
                f"run {quality.run_id}",
                lambda client: client.log_batch(quality.run_id, _points(quality, values)),
            )
        except ReferenceNotFound:
            message = "run %s was deleted; the quality of its model is not written"
            log.info(message, quality.run_id, extra=_log_context(quality))

    def _log_failure(self, quality: Quality, error: RegistryError) -> None:
        if quality.key not in self._failing:
            self._failing.add(quality.key)
            message = "the quality of version %s of %s could not be written to MLflow: %s"
            log.warning(message, quality.label, quality.model, error, extra=_log_context(quality))


def _points(quality: Quality, values: Mapping[str, float]) -> list[Any]:
    """Return points of the run and of the model that it logged; MLflow stores identical points once."""
    from mlflow.entities import Metric

    step, at = quality.feedback, quality.at
    return [
        Metric(f"serving.{name}", float(value), at, step, quality.model_id) for name, value in values.items()
    ]


def _log_context(quality: Quality) -> dict[str, str]:
    return {"model": quality.model, "version": quality.label}
