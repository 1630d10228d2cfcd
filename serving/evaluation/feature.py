"""Registers the evaluation of promoted versions with the service."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from cachetools import LRUCache
from pydantic import BaseModel, Field

from serving.evaluation.evaluation_check import RULES_TAG, EvaluationCheck
from serving.evaluation.evidence import TAG, Evidence
from serving.evaluation.mlflow_run import add_plot, record
from serving.evaluation.rule_watch import RuleWatch
from serving.evaluation.sources import TAG as ROWS_TAG
from serving.feature_interface import Core, Feature, Task
from serving.http.readiness import StatusPart, StatusSource
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.tasks import BackgroundTasks
from serving.version import Version

_MAX_VERSIONS = 100


class RuleState(BaseModel):
    """The decision about one rule."""

    rule: str
    decision: str = Field(description="holds, fails, not enough evidence, or no champion")
    value: float | None = None
    champion: float | None = None
    low: float | None = Field(None, description="lower confidence bound")
    high: float | None = Field(None, description="upper confidence bound")
    rows: int


class EvaluationState(BaseModel):
    """The evaluation of a version on labelled rows before it went live."""

    rows: int
    source: str
    champion: str | None
    confidence: float
    rules: list[RuleState]


class EvaluationFields(BaseModel):
    """The fields of the evaluation in a reference's state."""

    evaluation: EvaluationState | None = Field(
        None, description="evaluation of the live version against the rules of its model"
    )


class Evaluations:
    """Publishes the evidence about versions."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tasks = BackgroundTasks()
        self._evidence: LRUCache[tuple[str, str | None, str], Evidence] = LRUCache(_MAX_VERSIONS)

    def champion_slot(self, slot: Slot) -> Slot:
        """Return the primary slot of references that share requests, and otherwise the slot itself."""
        split = self._core.models.splits.get(slot.reference.name)
        return split.primary if split and slot.reference.weight is not None else slot

    def publish(self, loaded: LoadedModel, evidence: Evidence) -> None:
        """Write the evidence as a tag of the version and as an MLflow run, without waiting for them."""
        self._evidence[loaded.version.identity] = evidence
        self._tag(loaded.version, evidence, None)
        self._tasks.spawn(self._record(loaded.version, evidence))

    async def _record(self, version: Version, evidence: Evidence) -> None:
        if run_id := await record(self._core.registry, version, evidence):
            self._tag(version, evidence, run_id)
            await add_plot(self._core.registry, version, evidence, run_id)

    def _tag(self, version: Version, evidence: Evidence, run_id: str | None) -> None:
        max_length = self._core.registry.max_tag_length
        self._core.tag_writer.set_tags(version, TAG, lambda tags: {TAG: evidence.tag(max_length, run_id)})

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return the evaluation of the live version; its values are not public."""
        evidence = self._evidence.get(slot.live.version.identity) if slot.live else None
        if evidence is None or public:
            return StatusPart()
        return StatusPart(EvaluationFields(evaluation=EvaluationState.model_validate(evidence.facts())))

    async def aclose(self, seconds: float) -> None:
        """Wait for the runs that are being recorded."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._tasks.join()


def create(core: Core) -> list[Feature]:
    """Return the feature; it does nothing for models without the tag `serving.require`."""
    evaluations = Evaluations(core)
    watch = RuleWatch(core.registry, (RULES_TAG, ROWS_TAG), core.followers)
    check = EvaluationCheck(
        core.settings,
        core.registry,
        evaluations.champion_slot,
        evaluations.publish,
        next(iter(core.outcome_readers), None),
        watch=watch.record,
    )
    return [
        Feature(
            checks=[check],
            tasks=[Task("rule watch", watch.run)],
            status=StatusSource(EvaluationFields, evaluations.status),
            aclose=evaluations.aclose,
        )
    ]
