"""Evaluates a candidate and the champion on the same labelled rows, each in an extra process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from cachetools import LRUCache

from serving.errors import ProcessDied
from serving.evaluation.evidence import Evidence
from serving.evaluation.extra_process import (
    MAX_TIMED_CALLS,
    MIN_TIMED_CALLS,
    WARM_UP_CALLS,
    EvaluationFailed,
    ExtraProcess,
)
from serving.evaluation.rules import Rule
from serving.evaluation.samples import Sample, VersionSample
from serving.evaluation.sources import LabelledRows
from serving.evaluation.statistics_process import judge
from serving.models.loaded_model import LoadedModel
from serving.promotion_errors import LoadFailed, Rejected
from serving.registry.tag_writer import now
from serving.settings.settings import Settings

log = logging.getLogger("serving.evaluation")
_MAX_TIMING_SECONDS = 8.0
_MAX_CACHED_CHAMPIONS = 4
_MAX_CACHED_ROWS = 200_000


@dataclass(frozen=True)
class Plan:
    """An evaluation to do.

    Args:
        text: the rules as they are written in the tag.
        rules: the rules.
        rows: the labelled rows.
        champion: the live version; None if none is live, or if no rule needs it.
    """

    text: str
    rules: Sequence[Rule]
    rows: LabelledRows
    champion: LoadedModel | None

    @property
    def is_timed(self) -> bool:
        """Whether a rule bounds the latency."""
        return any(rule.quantity.metric.endswith("_ms") for rule in self.rules)

    @property
    def slice_columns(self) -> list[str]:
        """The columns by which rules select rows."""
        return [name for rule in self.rules for name, _ in rule.quantity.where]


class Evaluator:
    """Evaluates versions; it keeps the predictions of champions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._champions: LRUCache[tuple[str, str], VersionSample] = LRUCache(_MAX_CACHED_CHAMPIONS)

    async def evaluate(self, plan: Plan, candidate: LoadedModel) -> Evidence:
        """Return the evidence about a candidate.

        Raises:
            Rejected: the candidate cannot predict the labelled rows.
            ProcessDied: the statistics failed, through no fault of the candidate.
        """
        try:
            sample = await self._sample(plan, candidate)
        except ProcessDied as first:  # it may be no fault of the version
            log.warning("%s; %s is evaluated once more", first, candidate.version)
            try:
                sample = await self._sample(plan, candidate)
            except ProcessDied as error:
                raise Rejected(
                    f"it cannot be evaluated on its labelled rows: {error}, twice in a row"
                ) from error
        settings = self._settings
        return Evidence(
            await judge(plan.text, sample, settings.evaluation_confidence),
            len(plan.rows),
            plan.rows.source,
            plan.rows.digest,
            str(plan.champion.version) if plan.champion else None,
            settings.evaluation_confidence,
            settings.evaluation_warns,
            now(),
        )

    async def _sample(self, plan: Plan, candidate: LoadedModel) -> Sample:
        seconds = self._settings.load_seconds
        columns = plan.rows.columns(plan.slice_columns)
        async with AsyncExitStack() as processes:
            try:
                new = await processes.enter_async_context(ExtraProcess(candidate, seconds))
                old, fault = await self._start_champion(plan, processes)
                latencies: Sequence[Sequence[float]] = ((), ())
                if plan.is_timed:
                    latencies = await _time([new, *([old] if old else [])], plan.rows)
                new.lower_priority()
                predicted = replace(await new.predict(plan.rows), latencies=latencies[0])
            except EvaluationFailed as error:
                raise Rejected(f"it cannot be evaluated on its labelled rows: {error}") from error
            champion = None
            if plan.champion and not fault:
                champion, fault = await self._predict_champion(plan.champion, old, plan.rows)
            if champion and old and plan.is_timed:
                champion = replace(champion, latencies=latencies[1])
        classes = [*predicted.classes, *(champion.classes if champion else ())]
        labels = await asyncio.to_thread(plan.rows.labels_for, classes)
        return Sample(labels, columns, predicted, champion, fault)

    async def _start_champion(self, plan: Plan, processes: AsyncExitStack) -> tuple[ExtraProcess | None, str]:
        """Start a process of the champion if one is necessary; return it, or why it cannot be started."""
        champion = plan.champion
        is_known = champion and (champion.artifacts.digest, plan.rows.digest) in self._champions
        if champion is None or (is_known and not plan.is_timed):
            return None, ""
        process = ExtraProcess(champion, self._settings.load_seconds)
        try:
            return await processes.enter_async_context(process), ""
        except LoadFailed as error:
            return None, f"the champion, {champion.version}, could not be loaded once more: {error}"

    async def _predict_champion(
        self, champion: LoadedModel, process: ExtraProcess | None, rows: LabelledRows
    ) -> tuple[VersionSample | None, str]:
        """Return the champion's predictions, or why there are none."""
        key = (champion.artifacts.digest, rows.digest)
        if process and key not in self._champions:
            process.lower_priority()
            try:
                predicted = await process.predict(rows)
            except (EvaluationFailed, ProcessDied) as error:
                return None, f"the champion, {champion.version}, cannot be evaluated on these rows: {error}"
            if len(rows) > _MAX_CACHED_ROWS:
                return predicted, ""
            self._champions[key] = predicted
        return self._champions[key], ""


async def _time(processes: Sequence[ExtraProcess], rows: LabelledRows) -> list[list[float]]:
    """Return the times of calls of one row, by process and in milliseconds.

    The calls alternate, so that the load of the machine affects all processes alike. They have the priority
    of ordinary model processes, and are so few that requests do not notice them.
    """
    times: list[list[float]] = [[] for _ in processes]
    started = time.monotonic()
    for number in range(WARM_UP_CALLS + MAX_TIMED_CALLS):
        for process, measured in zip(processes, times, strict=True):
            measured.append(await process.time_call(rows, number % len(rows)))
        is_late = time.monotonic() - started > _MAX_TIMING_SECONDS
        if is_late and number >= WARM_UP_CALLS + MIN_TIMED_CALLS:
            break
    return [measured[WARM_UP_CALLS:] for measured in times]
