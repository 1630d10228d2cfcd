"""Canaries: shift traffic to a challenger in steps, and stop it when it does worse than the primary."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.hooks import InferenceEvent, RequestHook
from serving.models.failure_crosscheck import excuse
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.models.traffic_split import TrafficSplit
from serving.registry.tag_changes import MAX_REASON_LENGTH
from serving.registry.tag_writer import TagWriter
from serving.rollout import canary_state
from serving.rollout.canary_analysis import RequestStats, TrafficWindow, failure_reason
from serving.settings.groups import RolloutSettings
from serving.tasks import BackgroundTasks
from serving.text import shorten
from serving.version import Version

log = logging.getLogger("serving.canary")
_POLL_SECONDS = 1.0
_MIN_POLLS = 2
"""After this many polls, one has begun after the tag was written: the first may have begun before."""


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """The state of a weighted reference."""

    share: float
    """The intended share of the requests, between 0 and 1."""
    state: str
    """first, waiting (no version is live, or it would break clients), rising, steady, or stopped."""
    reason: str = ""


class Canary(RequestHook, Collector):
    """Controls the traffic of the references that share a model; the first is the primary.

    Args:
        split: Distributes the requests.
        limits: The steps, and the limits for errors and latency.
        tag_writer: Writes the progress of a version to the registry.
    """

    def __init__(self, split: TrafficSplit, limits: RolloutSettings, tag_writer: TagWriter) -> None:
        self.split = split
        self._challengers = [_Challenger(split, slot, limits, tag_writer) for slot in split.slots[1:]]
        self._windows: dict[LoadedModel, TrafficWindow] = {}

    def standing(self, slot: Slot) -> CanaryStatus:
        """Return the state of a reference."""
        for challenger in self._challengers:
            if challenger.slot is slot:
                return challenger.standing()
        return CanaryStatus(self.split.share(slot), "first")

    def on_response(self, event: InferenceEvent) -> None:
        """Record the time of the model alone: the speed of a client's connection is not the version's."""
        window = self._windows.get(event.live)
        if window and event.parts and event.parts[0][1].stream is None:
            first, last = event.parts[0][1], event.parts[-1][1]
            window.seconds.append(last.finished - first.started)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(_POLL_SECONDS)

    def tick(self, now: float) -> None:
        """Check each challenger once; `now` is in seconds."""
        live_models = {slot.live for slot in self.split.slots if slot.live}
        self._windows = {live: self._windows.get(live) or TrafficWindow(live) for live in live_models}
        primary = self.split.primary.live
        for challenger in self._challengers:
            challenger.tick(self._windows, primary, now)

    def collect(self) -> Iterator[Metric]:
        """Return the shares of the requests for Prometheus."""
        shares = GaugeMetricFamily(
            "serving_split_share_ratio",
            "Configured share of a model's requests for a weighted reference.",
            labels=("model", "uri"),
        )
        for slot in self.split.slots:
            shares.add_metric([slot.reference.name, slot.reference.uri], self.split.share(slot))
        yield shares


class _Challenger:
    """A reference that is measured against the primary."""

    def __init__(
        self, split: TrafficSplit, slot: Slot, limits: RolloutSettings, tag_writer: TagWriter
    ) -> None:
        self.slot = slot
        self._split, self._limits, self._tag_writer = split, limits, tag_writer
        self._steps: Sequence[float] = [step / 100 for step in limits.canary_steps] or [split.share(slot)]
        self._loaded: LoadedModel | None = None
        self._checked: LoadedModel | None = None
        """The version whose failures are being checked."""
        self._tasks = BackgroundTasks()
        self._step, self._since = 0, 0.0
        self._stopped = ""
        """The reason, if the version is stopped."""
        self._version: Version | None = None
        self._polls = 0.0
        """The polls of the registry since the tag has shown the stop; -inf before it is written."""
        # The version's tags are read before it receives requests.
        split.set_weight(slot, 0.0)

    def standing(self) -> CanaryStatus:
        share = self._split.share(self.slot)
        if self._stopped:
            return CanaryStatus(share, "stopped", self._stopped)
        if not self._is_candidate:
            breaks = self.slot.live and self.slot.is_resolved
            reason = "it would break clients of the first" if breaks else self.slot.reason
            return CanaryStatus(share, "waiting", reason)
        return CanaryStatus(share, "rising" if self._step < len(self._steps) - 1 else "steady")

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
        live = self.slot.live if self._is_candidate else None
        if live is not self._loaded:
            self._abort()
            self._loaded = live
            if live:
                self._start(live, windows, now)
        if live is None or primary is None or self._stopped_in_registry(live, windows, now):
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
        elif self._is_due(stats, now):
            self._step += 1
            self._start_step(live, windows, now)

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
        self._stopped = ""

    def _start(self, live: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float) -> None:
        self._step, self._stopped = 0, ""
        if canary_state.is_stopped(live.version.tags):
            self._split.set_weight(self.slot, 0.0)
        else:
            self._start_step(live, windows, now)

    def _start_step(self, live: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float) -> None:
        self._since = now
        share = self._steps[self._step]
        self._split.set_weight(self.slot, share)
        for loaded in filter(None, (live, self._split.primary.live)):
            windows[loaded].begin()
        step = canary_state.describe(self._reference, share)
        log.info("%s receives %s", live.version, step, extra=live.version.in_logs)
        update = partial(canary_state.start_step, self._reference, self._steps[self._step :])
        self._tag_writer.set_tags(live.version, canary_state.TAG, update)

    def _is_due(self, stats: RequestStats, now: float) -> bool:
        """Return whether the next step starts."""
        is_proven = now - self._since >= self._limits.canary_seconds and stats.is_enough
        return is_proven and self._step < len(self._steps) - 1

    def _stopped_in_registry(
        self, live: LoadedModel, windows: dict[LoadedModel, TrafficWindow], now: float
    ) -> bool:
        """Return whether the version is stopped: by this front, by another front, or in an earlier run."""
        if live.version is not self._version:
            self._version, self._polls = live.version, self._polls + 1
        if canary_state.is_stopped(live.version.tags):
            self._polls = _MIN_POLLS
            if not self._stopped:
                self._stop_routing(live.version.tags[canary_state.TAG])
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
        self._stop_routing(reason)
        self._polls = -math.inf
        tags = canary_state.stop(self._reference, share, reason)
        self._tag_writer.set_tags(
            live.version, canary_state.TAG, lambda _: tags, partial(self._on_stop_written, live)
        )

    def _on_stop_written(self, live: LoadedModel) -> None:
        """Watch for the deletion of the tag from now on: it may come before a poll has shown the tag."""
        if live is self._loaded:
            self._version, self._polls = live.version, 0

    def _stop_routing(self, reason: str) -> None:
        self._stopped = reason
        self._split.set_weight(self.slot, 0.0)
