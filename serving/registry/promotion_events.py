"""What becomes of versions, told wherever somebody looks: in MLflow, the history, the log and `/ready`."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from functools import partial

from serving.batching.sharing_proof import TAG as BATCHING_TAG
from serving.batching.sharing_proof import Sharing, reported
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.registry.decisions import Candidate, CandidatePhase, outranked_reason, stage_conflict_warning
from serving.registry.history import Event, History
from serving.registry.tag_writer import TagWriter, now
from serving.tasks import BackgroundTasks
from serving.version import Outcome, Version

log = logging.getLogger("serving.follower")
WARNINGS_TAG = "serving.warnings"
_MIN_LIVE_TIME = timedelta(seconds=2)
_NO_WARNINGS = "none"


class PromotionEvents:
    """Tells what becomes of the versions of one reference."""

    def __init__(self, slot: Slot, herald: TagWriter, history: History, errands: BackgroundTasks) -> None:
        self._slot, self._herald, self._history, self._errands = slot, herald, history, errands
        self._reported: dict[str, tuple[LoadedModel, str]] = {}

    def live(self, new: Version, old: Version | None, reason: str, *, stands_in: bool) -> None:
        """Tell that a version is live, and that the one before is not.

        Args:
            new: the version.
            old: what was live before.
            reason: why.
            stands_in: the reference names another, which this front can't serve.
        """
        log.info("%s is live%s", new, f": {reason}" if reason else "", extra=self._slot.in_logs)
        self._herald.live(self._slot.reference.uri, new, reason, stands_in=stands_in)
        self._record(new, Outcome.LIVE, reason)
        if old and old.identity != new.identity:
            self.superseded(old, f"{new} went live")

    def superseded(self, version: Version, reason: str) -> None:
        """Tell that another serves in a version's place; the history tells it by the other."""
        self._herald.publish(version, Outcome.SUPERSEDED, reason)

    def publish(self, version: Version, outcome: Outcome, reason: str) -> None:
        """Tell what became of a version that is not live, in MLflow and in the history."""
        self._herald.publish(version, outcome, reason)
        self._record(version, outcome, reason)

    def _record(self, version: Version, outcome: Outcome, reason: str) -> None:
        self._errands.spawn(self._history.add(Event(version.label, outcome, now(), reason)))

    def condition(self, live: LoadedModel) -> None:
        """Report in MLflow whether callers share calls of the live version, and its warnings.

        A version that gives way at once is not reported on: each tag is two calls of the registry.
        """
        if abs(datetime.now(UTC) - live.loaded_at) < _MIN_LIVE_TIME:  # the clock may have been set back
            return
        sharing, warnings = live.calls.sharing, "; ".join(live.warnings)
        for tag, text, merge in (
            (BATCHING_TAG, json.dumps(sharing.as_json()), partial(_merged_sharing, sharing)),
            (WARNINGS_TAG, warnings, partial(_merged_warnings, warnings)),
        ):
            is_new = self._reported.get(tag) != (live, text)
            if is_new and (text or live.version.tags.get(tag) or tag in self._reported):
                self._reported[tag] = live, text
                self._herald.set_tag(live.version, tag, merge)

    def set_reason(self, reason: str, candidate: Candidate | None) -> None:
        """Tell why nothing is live, or not what is promoted."""
        if reason != self._slot.reason:
            self._slot.reason = reason
            told = self._slot.in_logs | (candidate.version.in_logs if candidate else {})
            loading = candidate is not None and candidate.state is CandidatePhase.LOADING
            log.log(logging.INFO if loading else logging.WARNING, "%s", reason, extra=told)

    def add_warning(self, rivals: tuple[Version, ...], found: Version) -> None:
        """Warn of several versions in one stage: the rollback trap, since the highest number is served."""
        stage, live = self._slot.reference.selector, self._slot.live
        # What is live was not promoted in vain: it gives way once the higher number has proved itself.
        rivals = tuple(each for each in rivals if not (live and live.version.identity == each.identity))
        for rival in rivals:
            self.superseded(rival, outranked_reason(rival, found, stage))
        self.set_warnings(*([stage_conflict_warning(rivals, found, stage)] if rivals else []))

    def set_warnings(self, *warnings: str) -> None:
        """Tell what a person should look at, though a version is live; of what was told before, nothing."""
        for warning in warnings:
            if warning not in self._slot.warnings:
                log.warning("%s", warning, extra=self._slot.in_logs)
        self._slot.warnings = warnings


def _merged_sharing(sharing: Sharing, present: str) -> str:
    """Return the tag to write over the present one: that live requests differed on another front stays."""
    if sharing.allowed and reported({BATCHING_TAG: present}):
        return present
    return json.dumps(sharing.as_json())


def _merged_warnings(warnings: str, present: str) -> str:
    return warnings or (_NO_WARNINGS if present else "")
