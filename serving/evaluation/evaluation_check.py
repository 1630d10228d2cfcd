"""Lets a version go live only if labelled rows support the rules of its model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachetools import LRUCache

from serving.errors import JournalUnavailable
from serving.evaluation.downloads import download
from serving.evaluation.evaluator import Evaluator, Plan
from serving.evaluation.evidence import Evidence
from serving.evaluation.rules import InvalidRule, Rule, parse_rules
from serving.evaluation.sources import (
    OUTCOME,
    TAG,
    JournalSource,
    LabelledRows,
    labelled,
    own_file,
    parse_source,
    read_file,
    sha256,
)
from serving.feature_interface import ReadRecordedOutcomes
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.promotion_errors import PromotionWaits, Rejected
from serving.registry import live_tag
from serving.registry.client import RegistryClient
from serving.registry.promotion_check import Promotion, PromotionCheck
from serving.settings.settings import Settings
from serving.version import Version

RULES_TAG = "serving.require"
_MAX_PLANS = 8
_MAX_VERDICTS = 100


class EvaluationCheck(PromotionCheck):
    """Evaluates versions before they go live.

    It does not evaluate a version that has served before under the same reference, on this front or,
    according to its tag `serving.live`, on others: a rollback and the start of another front must take
    seconds, and recent outcomes must not turn off what serves.

    Args:
        settings: the settings of the service.
        registry: holds the rules.
        champion_slot: returns the slot whose live version is the champion for a slot.
        publish: is called with the evidence about a version.
        read_outcomes: reads recorded outcomes; None if there is no journal.
        watch: is called with each version and the tags with which it is tried.
        repeats: whether to evaluate also versions that have served before.
    """

    def __init__(
        self,
        settings: Settings,
        registry: RegistryClient,
        champion_slot: Callable[[Slot], Slot],
        publish: Callable[[LoadedModel, Evidence], None],
        read_outcomes: ReadRecordedOutcomes | None = None,
        *,
        watch: Callable[[Promotion, Mapping[str, str]], None] = lambda promotion, tags: None,
        repeats: bool = False,
    ) -> None:
        self._settings, self._registry, self._champion_slot = settings, registry, champion_slot
        self._publish, self._read_outcomes = publish, read_outcomes
        self._watch, self._repeats = watch, repeats
        self._evaluator = Evaluator(settings)
        self._plans: LRUCache[Any, Plan | None] = LRUCache(_MAX_PLANS)
        self._verdicts: LRUCache[Any, Evidence] = LRUCache(_MAX_VERDICTS)
        self._waited: LRUCache[Any, bool] = LRUCache(_MAX_VERDICTS)

    async def before_load(self, promotion: Promotion) -> None:
        """Read the rules and the labelled rows, and reject a version that has failed them before.

        Raises:
            PromotionWaits: they cannot be read, or the champion is not live yet.
            Rejected: the version has failed these rules before, or the labelled rows have changed.
            RegistryError: the registry is not available.
        """
        plan = self._plans[_key(promotion)] = await self._plan(promotion)
        verdict = plan and self._verdicts.get(_verdict_key(promotion, plan))
        if verdict and not verdict.passed:
            raise Rejected(verdict.reason)

    async def before_live(self, promotion: Promotion, loaded: LoadedModel) -> None:
        """Evaluate the version.

        Raises:
            Rejected: the labelled rows do not support a rule.
            PromotionWaits: another version went live meanwhile.
            ProcessDied: a process died, through no fault of the version.
        """
        key = _key(promotion)
        plan = self._plans.pop(key) if key in self._plans else await self._plan(promotion)
        if plan is None:
            return
        verdict_key = _verdict_key(promotion, plan)
        evidence = self._verdicts.get(verdict_key)
        if evidence is None:
            evidence = await self._evaluator.evaluate(plan, loaded)
            live = self._champion_slot(promotion.slot).live
            if _compares(plan.rules) and plan.champion is not live:
                raise PromotionWaits("another version went live while it was evaluated", retry=True)
            # Times vary, and a fault of the champion may be temporary: the next attempt evaluates again.
            if not plan.is_timed and _is_complete(plan, evidence):
                self._verdicts[verdict_key] = evidence
            self._publish(loaded, evidence)
        if not evidence.passed:
            raise Rejected(evidence.reason)
        loaded.add_evidence(evidence.summary, evidence.warning)

    async def _plan(self, promotion: Promotion) -> Plan | None:
        """Return the evaluation that a version needs; None if it needs none."""
        version, slot = promotion.version, promotion.slot
        is_trial = slot.reference in self._settings.shadow
        if version.version is None or is_trial or (not self._repeats and _has_served(promotion)):
            return None
        tags = await self._registry.model_tags(version.name)
        self._watch(promotion, tags)
        text = tags.get(RULES_TAG, "").strip()
        if not text:
            return None
        try:
            rules = parse_rules(text)
        except InvalidRule as error:
            reason = f"its rules ({RULES_TAG}) cannot be read: {error}"
            raise PromotionWaits(reason, retry=True) from error
        champion = await self._champion(promotion, rules)
        return Plan(text, rules, await self._rows(promotion, tags.get(TAG, "")), champion)

    async def _champion(self, promotion: Promotion, rules: Sequence[Rule]) -> LoadedModel | None:
        """Return the live version if a rule compares with it.

        After a restart, the version that served last is not live yet. It is loaded while a version waits.
        """
        slot = self._champion_slot(promotion.slot)
        if not _compares(rules):
            return None
        if slot.live is None and slot is not promotion.slot and slot.is_resolved:
            raise PromotionWaits(
                f"{slot.reference}, with which its rules compare it, is not live", retry=True
            )
        if slot.live is None and _key(promotion) not in self._waited:
            former = await self._former(promotion.version, slot)
            if former:
                self._waited[_key(promotion)] = True
                raise PromotionWaits(
                    f"{former}, with which its rules compare it, is not live yet", retry=True
                )
        return slot.live

    async def _former(self, version: Version, slot: Slot) -> Version | None:
        """Return the other version that was live last under a reference, according to the tags."""
        versions = await self._registry.versions(version.name, version.version)
        return live_tag.latest(
            [other for other in versions if other.version != version.version], slot.reference.uri
        )

    async def _rows(self, promotion: Promotion, tag: str) -> LabelledRows:
        """Return the labelled rows that the tag names, or else those of the version itself.

        The tag comes first: it is the same for all versions, and a version may not choose its own test.
        """
        if not tag.strip():
            if path := own_file(promotion.artifacts):
                digest = await asyncio.to_thread(sha256, path)
                return await read_file(path, "the version itself", f"sha256:{digest}")
            raise PromotionWaits(
                "its rules need labelled rows: log it with training.log_model(…, evaluation=(X, y)), or set "
                f"the tag {TAG} of its model",
                retry=True,
            )
        source = parse_source(tag)
        if not isinstance(source, JournalSource):
            return await download(source, self._registry, self._settings)
        if self._read_outcomes is None:
            raise PromotionWaits(f"{TAG} names {source}, but SERVING_JOURNAL_URL is not set", retry=True)
        try:
            outcomes = await self._read_outcomes(promotion.version.name, source.days, OUTCOME)
            return labelled(outcomes.table, str(source), outcomes.digest, OUTCOME)
        except (JournalUnavailable, ValueError) as error:
            raise PromotionWaits(
                f"its labelled rows ({source}) cannot be read: {error}", retry=True
            ) from error


def _compares(rules: Sequence[Rule]) -> bool:
    return any(rule.uses_champion for rule in rules)


def _is_complete(plan: Plan, evidence: Evidence) -> bool:
    """Check whether the champion was evaluated, if there is one."""
    return plan.champion is None or bool(evidence.statistics.champion_metrics)


def _has_served(promotion: Promotion) -> bool:
    uri = promotion.slot.reference.uri
    return promotion.has_served or uri in live_tag.references(promotion.version.tags)


def _key(promotion: Promotion) -> tuple[Any, ...]:
    return promotion.slot.reference.uri, promotion.version.identity


def _verdict_key(promotion: Promotion, plan: Plan) -> tuple[Any, ...]:
    champion = plan.champion.artifacts.digest if plan.champion else None
    return promotion.version.identity, promotion.artifacts.digest, plan.text, plan.rows.identity, champion
