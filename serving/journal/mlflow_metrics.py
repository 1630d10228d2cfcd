"""Tells in MLflow how right versions are: as metrics of their runs, beside those of their training."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from serving.errors import ReferenceNotFound, RegistryError
from serving.journal.quality import Quality
from serving.registry.client import RegistryClient

log = logging.getLogger("serving.journal")
RunKey = tuple[str, str, str]
_SECONDS_BETWEEN = 60.0
_SECONDS_BETWEEN_TRIES = 5.0


class MetricsReporter:
    """Writes metrics once a minute for each version at most; what the registry does not take is tried again.

    Fronts that share a journal may each write a point a minute; what is the same, MLflow keeps once.
    """

    def __init__(self, registry: RegistryClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._pending: dict[RunKey, Quality] = {}
        self._told: dict[RunKey, Quality] = {}
        self._told_at: dict[RunKey, float] = {}
        self._more = asyncio.Event()
        self._failing: set[RunKey] = set()

    def enqueue(self, qualities: Sequence[Quality]) -> None:
        """Have this written to the runs; what is told later replaces it."""
        for each in qualities:
            if each.run_id and self._told.get(each.key) != each:
                self._pending[each.key] = each
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
        for key, quality in list(self._pending.items()):
            if not now and self._clock() - self._told_at.get(key, -_SECONDS_BETWEEN) < _SECONDS_BETWEEN:
                continue
            try:
                await self._write(quality)
            except RegistryError as error:
                self._log_failure(quality, error)
                self._pending[key] = self._pending.pop(key)  # others come first when it is tried again
                if not now:
                    return
            else:
                self._failing.discard(key)
                self._told[key], self._told_at[key] = quality, self._clock()
                if self._pending.get(key) is quality:
                    del self._pending[key]

    async def _write(self, quality: Quality) -> None:
        assert quality.run_id
        named = quality.metrics | {"feedback_count": quality.feedback}
        metrics = {f"serving.{name}": float(value) for name, value in named.items()}
        of = quality.run_id, quality.model_id
        try:
            await self._registry.log_metrics(*of, metrics, quality.feedback, quality.at)
        except ReferenceNotFound:
            said = "run %s has gone, and what is told of its model with it"
            log.info(said, quality.run_id, extra=_in_logs(quality))

    def _log_failure(self, quality: Quality, error: RegistryError) -> None:
        if quality.key not in self._failing:
            self._failing.add(quality.key)
            said = "how right version %s of %s is could not be told: %s"
            log.warning(said, quality.label, quality.model, error, extra=_in_logs(quality))


def _in_logs(quality: Quality) -> dict[str, str]:
    return {"model": quality.model, "version": quality.label}
