"""Publishes the outcomes of promotions to tags in MLflow, the history, the log and the slot's status."""

from __future__ import annotations

import logging
from dataclasses import dataclass
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
_LOG_LEVELS = {
    Outcome.LIVE: logging.INFO,
    Outcome.REJECTED: logging.WARNING,
    Outcome.WAITING: logging.WARNING,
    Outcome.REVERTED: logging.ERROR,
}
"""A superseded version is not logged: the line about its successor is enough."""


@dataclass(frozen=True, slots=True)
class PromotionEvent:
    """The outcome of a promotion.

    `stands_in`: the version serves in place of the promoted one, which this front cannot serve.
    """

    version: Version
    outcome: Outcome
    reason: str = ""
    stands_in: bool = False

    @property
    def sentence(self) -> str:
        """Return the event as a sentence for the log and for people."""
        match self.outcome:
            case Outcome.LIVE:
                return f"{self.version} is live" + (f": {self.reason}" if self.reason else "")
            case Outcome.REJECTED:
                return Candidate(self.version, CandidatePhase.REJECTED, self.reason).status
            case Outcome.WAITING:
                return self.reason
            case _:
                return f"{self.version} was {self.outcome}: {self.reason}"


class PromotionEvents:
    """Publishes what happens to the versions of one reference."""

    def __init__(self, slot: Slot, tag_writer: TagWriter, history: History, tasks: BackgroundTasks) -> None:
        self._slot, self._tag_writer, self._history, self._tasks = slot, tag_writer, history, tasks
        self._sinks = (self._write_tags, self._add_to_history, self._write_log, self._set_status)
        self._reported: dict[str, tuple[LoadedModel, str]] = {}

    def publish(self, event: PromotionEvent) -> None:
        """Send an event to all sinks."""
        for sink in self._sinks:
            sink(event)

    def _write_tags(self, event: PromotionEvent) -> None:
        if event.outcome is Outcome.LIVE:
            uri = self._slot.reference.uri
            self._tag_writer.live(uri, event.version, event.reason, stands_in=event.stands_in)
        else:
            self._tag_writer.publish(event.version, event.outcome, event.reason)

    def _add_to_history(self, event: PromotionEvent) -> None:
        if event.outcome is not Outcome.SUPERSEDED:  # the successor's entry ends that of a superseded version
            entry = Event(event.version.label, event.outcome, now(), event.reason)
            self._tasks.spawn(self._history.add(entry))

    def _write_log(self, event: PromotionEvent) -> None:
        # If another version stands in, the reason is already the slot's status, and was logged then.
        is_logged = event.outcome is not Outcome.LIVE and event.sentence == self._slot.reason
        if (level := _LOG_LEVELS.get(event.outcome)) and not is_logged:
            log.log(level, "%s", event.sentence, extra=self._slot.in_logs | event.version.in_logs)

    def _set_status(self, event: PromotionEvent) -> None:
        if event.outcome in (Outcome.REJECTED, Outcome.WAITING, Outcome.REVERTED):
            self._slot.set_reason(event.sentence)

    # -- status without an outcome

    def set_reason(self, reason: str, candidate: Candidate | None = None, detail: str = "") -> None:
        """Record and log why nothing is live, or why the promoted version is not; log the detail too."""
        if reason != self._slot.reason:
            self._slot.set_reason(reason)
            log_context = self._slot.in_logs | (candidate.version.in_logs if candidate else {})
            detail = detail or (candidate.detail if candidate else "")
            log_context |= {"cause": detail} if detail else {}
            loading = candidate is not None and candidate.state is CandidatePhase.LOADING
            log.log(logging.INFO if loading else logging.WARNING, "%s", reason, extra=log_context)

    def report_stage_conflict(self, rivals: tuple[Version, ...], served: Version) -> None:
        """Warn if several versions are in one stage: the highest is served, so a rollback has no effect."""
        stage, live = self._slot.reference.selector, self._slot.live
        # The live version is no rival: it is replaced once the higher version has been verified.
        rivals = tuple(rival for rival in rivals if not (live and live.version.identity == rival.identity))
        for rival in rivals:
            self.publish(PromotionEvent(rival, Outcome.SUPERSEDED, outranked_reason(rival, served, stage)))
        self.set_warnings(*([stage_conflict_warning(rivals, served, stage)] if rivals else []))

    def set_warnings(self, *warnings: str) -> None:
        """Replace the slot's warnings, and log the new ones."""
        for warning in warnings:
            if warning not in self._slot.warnings:
                log.warning("%s", warning, extra=self._slot.in_logs)
        self._slot.set_warnings(*warnings)

    def report_condition(self, live: LoadedModel) -> None:
        """Write into tags whether callers share calls of the live version, and its warnings.

        Nothing is written in its first seconds, as it may be replaced: each tag costs two registry calls.
        """
        if abs(datetime.now(UTC) - live.loaded_at) < _MIN_LIVE_TIME:  # the clock may have been set back
            return
        sharing, warnings = live.calls.sharing, "; ".join(live.warnings)
        for tag, text, merge in (
            (BATCHING_TAG, sharing.tag(), partial(_merge_sharing, sharing)),
            (WARNINGS_TAG, warnings, partial(_merge_warnings, warnings)),
        ):
            is_new = self._reported.get(tag) != (live, text)
            if is_new and (text or live.version.tags.get(tag) or tag in self._reported):
                self._reported[tag] = live, text
                self._tag_writer.set_tag(live.version, tag, merge)


def _merge_sharing(sharing: Sharing, present: str) -> str:
    """Return the value to write over the present one; a veto by another front's live requests stays."""
    if sharing.allowed and reported({BATCHING_TAG: present}):
        return present
    return sharing.tag()


def _merge_warnings(warnings: str, present: str) -> str:
    return warnings or (_NO_WARNINGS if present else "")
