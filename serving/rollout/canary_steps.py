"""The canary of one challenger: shift traffic to it in steps, stop it, or promote it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from serving.models.failure_crosscheck import excuse
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.models.traffic_split import TrafficSplit
from serving.outcome_board import OutcomeBoard
from serving.registry.client import RegistryClient
from serving.registry.tag_changes import MAX_REASON_LENGTH
from serving.registry.tag_writer import TagWriter
from serving.rollout import canary_state
from serving.rollout.canary_analysis import RequestStats, TrafficWindow, failure_reason
from serving.rollout.outcome_test import Evidence, OutcomeTest, Verdict
from serving.rollout.promotion import Promoter
from serving.settings.rollout import RolloutSettings
from serving.tasks import BackgroundTasks
from serving.text import shorten
from serving.version import Version

log = logging.getLogger("serving.canary")
_TAG_INTERVAL_SECONDS = 30.0
_MIN_POLLS = 2
"""After this many polls, one has begun after the tag was written: the first may have begun before."""


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """The state of a weighted reference."""

    share: float
    """The intended share of the requests, between 0 and 1."""
    state: str
    """first, waiting (no version is live, or it would break clients), rising, steady, stopped or promoted."""
    reason: str = ""
    outcomes: Evidence | None = None


class Challenger:
    """A reference that is measured against the primary."""

    def __init__(
        self,
        split: TrafficSplit,
        slot: Slot,
        limits: RolloutSettings,
        tag_writer: TagWriter,
        registry: RegistryClient,
        outcomes: OutcomeBoard,
    ) -> None:
        self.slot = slot
        self._split, self._limits, self._tag_writer = split, limits, tag_writer
        self._steps: Sequence[float] = [step / 100 for step in limits.canary_steps] or [split.share(slot)]
        self._loaded: LoadedModel | None = None
        self._checked: LoadedModel | None = None
        """The version whose failures are being checked."""
        self._tasks = BackgroundTasks()
        self._step, self._since = 0, 0.0
        self._stopped, self._is_promoted = "", False
        """The reason, if the canary is over, and whether the version was promoted at its end."""
        self._test = OutcomeTest(outcomes, limits, len(self._steps))
        self._evidence: Evidence | None = None
        self._shown_at = -math.inf
        self._promoter = Promoter(registry, self._tasks)
        self._version: Version | None = None
        self._polls = 0.0
        """The polls of the registry since the tag has shown the stop; -inf before it is written."""
        # The version's tags are read before it receives requests.
        split.set_weight(slot, 0.0)

    def standing(self) -> CanaryStatus:
        """Return the state of the reference."""
        share = self._split.share(self.slot)
        if self._stopped:
            return CanaryStatus(share, "promoted" if self._is_promoted else "stopped", self._stopped)
        if not self._is_candidate:
            breaks = self.slot.live and self.slot.is_resolved
            reason = "it would break clients of the first" if breaks else self.slot.reason
            return CanaryStatus(share, "waiting", reason)
        state = "rising" if self._step < len(self._steps) - 1 else "steady"
        reason = self._promoter.problem or str(self._evidence or "")
        return CanaryStatus(share, state, reason, self._evidence)

    @property
    def _is_candidate(self) -> bool:
        """Return whether the version may receive requests; deleting its alias aborts the canary."""
        return self.slot.is_resolved and self._split.is_compatible(self.slot)

    @property
    def _reference(self) -> str:
        return str(self.slot.reference)

    def tick(
        self, windows: dict[LoadedModel, TrafficWindow], primary: LoadedModel | None, now: float
    ) -> None:
        """Start, continue or end the canary; `now` is in seconds."""
        live = self.slot.live if self._is_candidate else None
        if live is not self._loaded:
            self._abort()
            self._loaded = live
            if live:
                self._start(live, windows, now)
        if live is None or primary is None:
            return
        if self._is_over_in_registry(live, windows, now):
            if self._is_promoted and primary.version.identity == live.version.identity:
                self._split.set_weight(self.slot, 0.0)  # the primary serves it to all clients
            return
        if self._checked is live:
            return
        stats = windows[live].sample()
        if reason := self._failure_reason(live, primary, windows):
            if stats.failed and live.request_counts.raised:
                self._checked = live
                self._tasks.spawn(self._check(live, primary, windows))
            else:
                self._stop(live, reason)
        else:
            self._weigh_outcomes(live, primary, windows, now)

    def _weigh_outcomes(
        self, live: LoadedModel, primary: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float
    ) -> None:
        """Stop the version on proven harm, or start what follows this step once it is complete."""
        if self._split.share(self._split.primary) > 0:
            self._evidence = self._test.evidence(live, primary)
        else:  # there is no primary to compare with
            self._evidence = None
        verdict = self._evidence.verdict if self._evidence else Verdict.HARMLESS
        if verdict is Verdict.HARMFUL:
            self._stop(live, f"its outcomes are worse: {self._evidence}")
        elif verdict is Verdict.HARMLESS and self._is_complete(windows[live].sample(), now):
            self._finish_step(live, primary, windows, now)
        elif self._evidence and now - self._shown_at >= _TAG_INTERVAL_SECONDS:
            self._shown_at = now
            share = self._steps[self._step]
            update = partial(canary_state.show_outcomes, self._reference, share, self._evidence)
            self._tag_writer.set_tags(live.version, canary_state.STATE_TAG, update)

    def _finish_step(
        self, live: LoadedModel, primary: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float
    ) -> None:
        if self._step < len(self._steps) - 1:
            self._step += 1
            self._start_step(live, windows, now)
        elif self._limits.canary_promote and live.version.identity != primary.version.identity:
            reference = self._split.primary.reference
            self._promoter.start(reference, live.version, primary.version, self._on_promoted)

    def _on_promoted(self, version: Version) -> None:
        share, primary = self._steps[self._step], self._split.primary.reference
        grounds = f": {self._evidence}" if self._evidence else " without outcomes"
        sentence = shorten(f"promoted to {primary} after its last step{grounds}", MAX_REASON_LENGTH)
        tags = canary_state.promote(self._reference, share, sentence, self._evidence)
        live = self._loaded
        if live and live.version.identity == version.identity:
            self._stopped, self._is_promoted, self._polls = sentence, True, -math.inf
            self._test.end()
        self._tag_writer.set_tags(
            version, canary_state.TAG, lambda _: tags, partial(self._on_end_written, live)
        )

    def _failure_reason(
        self, live: LoadedModel, primary: LoadedModel, windows: Mapping[LoadedModel, TrafficWindow]
    ) -> str | None:
        has_traffic = self._split.share(self._split.primary) > 0
        baseline = windows[primary].baseline(has_traffic=has_traffic)
        return failure_reason(windows[live].sample(), baseline, self._limits)

    async def _check(
        self, live: LoadedModel, primary: LoadedModel, windows: Mapping[LoadedModel, TrafficWindow]
    ) -> None:
        """Stop the version unless the primary fails on the same requests."""
        try:
            await excuse(live.request_counts, primary, with_deaths=False)
        finally:
            self._checked = None
        is_current = live is self._loaded and not self._stopped and {live, primary} <= windows.keys()
        if is_current and (reason := self._failure_reason(live, primary, windows)):
            self._stop(live, reason)

    def _abort(self) -> None:
        """End the canary of a version that is no candidate any more."""
        self._split.set_weight(self.slot, 0.0)
        if (left := self._loaded) and not self._stopped:
            log.info(
                "%s receives no more requests: it is no longer a candidate",
                left.version,
                extra=self.slot.in_logs | left.version.in_logs,
            )
            update = partial(canary_state.end, self._reference, self._steps)
            self._tag_writer.set_tags(left.version, canary_state.TAG, update)
        self._stopped, self._is_promoted, self._evidence = "", False, None
        self._test.end()

    def _start(self, live: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float) -> None:
        self._step, self._stopped, self._is_promoted = 0, "", False
        self._test.end()
        if canary_state.is_over(live.version.tags):
            self._split.set_weight(self.slot, 0.0)
        else:
            self._start_step(live, windows, now)

    def _start_step(self, live: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float) -> None:
        self._since = now
        share = self._steps[self._step]
        self._split.set_weight(self.slot, share)
        for loaded in filter(None, (live, self._split.primary.live)):
            windows[loaded].begin()
        self._test.start_step(live, self._split.primary.live)
        self._evidence = None
        step = canary_state.describe(self._reference, share)
        log.info("%s receives %s", live.version, step, extra=live.version.in_logs)
        update = partial(canary_state.start_step, self._reference, self._steps[self._step :])
        self._tag_writer.set_tags(live.version, canary_state.TAG, update)

    def _is_complete(self, stats: RequestStats, now: float) -> bool:
        """Return whether the step has lasted long enough, and has had enough requests."""
        return now - self._since >= self._limits.canary_seconds and stats.is_enough

    def _is_over_in_registry(
        self, live: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float
    ) -> bool:
        """Return whether the canary is over: by this front, by another front, or in an earlier run."""
        if live.version is not self._version:
            self._version, self._polls = live.version, self._polls + 1
        if canary_state.is_over(live.version.tags):
            self._polls = _MIN_POLLS
            if not self._stopped:
                self._is_promoted = canary_state.is_promoted(live.version.tags)
                self._end_routing(live.version.tags[canary_state.TAG])
        elif self._stopped and self._polls >= _MIN_POLLS:  # a person has deleted the tag
            self._start(live, windows, now)
        return bool(self._stopped)

    def _stop(self, live: LoadedModel, reason: str) -> None:
        share = self._split.share(self.slot)
        reason = shorten(f"stopped at {100 * share:.4g} % of the requests: {reason}", MAX_REASON_LENGTH)
        log.error(
            "%s receives no more requests for %s: %s",
            live.version,
            self.slot.reference.name,
            reason,
            extra=self.slot.in_logs,
        )
        self._end_routing(reason)
        self._polls = -math.inf
        tags = canary_state.stop(self._reference, share, reason, self._evidence)
        self._tag_writer.set_tags(
            live.version, canary_state.TAG, lambda _: tags, partial(self._on_end_written, live)
        )

    def _on_end_written(self, live: LoadedModel | None) -> None:
        """Watch for the deletion of the tag from now on: it may come before a poll has shown the tag."""
        if live and live is self._loaded:
            self._version, self._polls = live.version, 0

    def _end_routing(self, reason: str) -> None:
        self._stopped = reason
        self._test.end()
        if not self._is_promoted:  # a promoted version keeps its requests until it is the primary
            self._split.set_weight(self.slot, 0.0)
