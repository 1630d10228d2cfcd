"""Evaluates a candidate and the champion on the same labelled rows, each in an extra process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

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
        self._champions: LRUCache[Any, VersionSample] = LRUCache(_MAX_CACHED_CHAMPIONS)

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
                times = await _time(new, old, plan.rows) if plan.is_timed else _Times()
                new.lower_priority()
                predicted = replace(await new.predict(plan.rows), latencies=times.candidate)
            except EvaluationFailed as error:
                raise Rejected(f"it cannot be evaluated on its labelled rows: {error}") from error
            champion = None
            if plan.champion and times.champion_error:
                fault = _fault(plan.champion, times.champion_error)
            if plan.champion and not fault:
                champion, fault = await self._predict_champion(plan.champion, old, plan.rows)
            if champion and old and plan.is_timed:
                champion = replace(champion, latencies=times.champion)
        classes = [*predicted.classes, *(champion.classes if champion else ())]
        labels = await asyncio.to_thread(plan.rows.labels_for, classes)
        return Sample(labels, columns, predicted, champion, fault)

    async def _start_champion(self, plan: Plan, processes: AsyncExitStack) -> tuple[ExtraProcess | None, str]:
        """Start a process of the champion if one is necessary; return it, or why it cannot be started."""
        champion = plan.champion
        is_known = champion and (champion.artifacts.digest, plan.rows.identity) in self._champions
        if champion is None or (is_known and not plan.is_timed):
            return None, ""
        process = ExtraProcess(champion, self._settings.load_seconds)
        try:
            return await processes.enter_async_context(process), ""
        except (LoadFailed, ProcessDied) as error:
            return None, f"the champion, {champion.version}, could not be loaded once more: {error}"

    async def _predict_champion(
        self, champion: LoadedModel, process: ExtraProcess | None, rows: LabelledRows
    ) -> tuple[VersionSample | None, str]:
        """Return the champion's predictions, or why there are none."""
        key = (champion.artifacts.digest, rows.identity)
        if process and key not in self._champions:
            process.lower_priority()
            try:
                predicted = await process.predict(rows)
            except (EvaluationFailed, ProcessDied) as error:
                return None, _fault(champion, error)
            if len(rows) > _MAX_CACHED_ROWS:
                return predicted, ""
            self._champions[key] = predicted
        return self._champions[key], ""


def _fault(champion: LoadedModel, error: Exception) -> str:
    return f"the champion, {champion.version}, cannot be evaluated on these rows: {error}"


@dataclass(frozen=True, slots=True)
class _Times:
    """The times of calls of one row in milliseconds, and why the champion's are incomplete."""

    candidate: Sequence[float] = ()
    champion: Sequence[float] = ()
    champion_error: EvaluationFailed | ProcessDied | None = None


async def _time(candidate: ExtraProcess, champion: ExtraProcess | None, rows: LabelledRows) -> _Times:
    """Return the times of calls of one row.

    The calls alternate, so that the load of the machine affects both processes alike. They have the priority
    of ordinary model processes, and are so few that requests do not notice them.

    Raises:
        EvaluationFailed, ProcessDied: the candidate's call failed. A fault of the champion is a result.
    """
    new: list[float] = []
    old: list[float] = []
    fault: EvaluationFailed | ProcessDied | None = None
    started = time.monotonic()
    for number in range(WARM_UP_CALLS + MAX_TIMED_CALLS):
        new.append(await candidate.time_call(rows, number % len(rows)))
        if champion and not fault:
            try:
                old.append(await champion.time_call(rows, number % len(rows)))
            except (EvaluationFailed, ProcessDied) as error:
                fault = error
        is_late = time.monotonic() - started > _MAX_TIMING_SECONDS
        if is_late and number >= WARM_UP_CALLS + MIN_TIMED_CALLS:
            break
    return _Times(new[WARM_UP_CALLS:], old[WARM_UP_CALLS:], fault)
