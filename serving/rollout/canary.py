"""Weighted references: the parts of the requests rise by steps, and fall to nothing where one does badly."""

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
from serving.registry.tag_writer import TagWriter
from serving.rollout.analysis import RequestStats, TrafficWindow, failure_reason
from serving.settings.groups import RolloutSettings
from serving.tasks import BackgroundTasks
from serving.version import Version

log = logging.getLogger("serving.canary")
TAG = "serving.canary"
"""Tells in the registry how far a version got; one that begins with `STOPPED` holds for every front."""
STOPPED = "stopped"
_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS = 2
"""After so many the registry has been looked at anew: the first may have been under way before."""


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """How a weighted reference stands."""

    share: float
    """The part of the requests that it is meant to get, between 0 and 1."""
    state: str
    """first, waiting (nothing is named or live, or it would break clients), rising, steady, or stopped."""
    reason: str = ""


class Canary(RequestHook, Collector):
    """Watches the references that share a model's requests; each is measured by the first.

    Args:
        split: shares the requests.
        limits: the steps, and what is too bad.
        herald: tells in the registry how far a version got.
    """

    def __init__(self, split: TrafficSplit, limits: RolloutSettings, herald: TagWriter) -> None:
        self.split = split
        self._limits, self._herald = limits, herald
        self._challengers = [_Challenger(split, slot, limits, herald) for slot in split.slots[1:]]
        self._watches: dict[LoadedModel, TrafficWindow] = {}

    def standing(self, slot: Slot) -> CanaryStatus:
        """How a reference stands."""
        for challenger in self._challengers:
            if challenger.slot is slot:
                return challenger.standing()
        return CanaryStatus(self.split.share(slot), "first")

    def on_response(self, exchange: InferenceEvent) -> None:
        """Note how long the model took; how fast a caller sends and reads is no matter of the version."""
        watch = self._watches.get(exchange.live)
        if watch and exchange.parts and exchange.parts[0][1].stream is None:
            first, last = exchange.parts[0][1], exchange.parts[-1][1]
            watch.seconds.append(last.finished - first.started)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    def tick(self, now: float) -> None:
        """Look at each reference once, at a moment in seconds."""
        lives = {slot.live for slot in self.split.slots if slot.live}
        self._watches = {live: self._watches.get(live) or TrafficWindow(live) for live in lives}
        first = self.split.primary.live
        for challenger in self._challengers:
            challenger.tick(self._watches, first, now)

    def collect(self) -> Iterator[Metric]:
        """The parts of the requests, for Prometheus."""
        shares = GaugeMetricFamily(
            "serving_split_share_ratio",
            "Configured share of a model's requests for a weighted reference.",
            labels=("model", "uri"),
        )
        for slot in self.split.slots:
            shares.add_metric([slot.reference.name, slot.reference.uri], self.split.share(slot))
        yield shares


class _Challenger:
    """One reference that is measured by the first."""

    def __init__(self, split: TrafficSplit, slot: Slot, limits: RolloutSettings, herald: TagWriter) -> None:
        self.slot = slot
        self._split, self._limits, self._herald = split, limits, herald
        self._steps: Sequence[float] = [step / 100 for step in limits.canary_steps] or [split.share(slot)]
        told = "up to {:.4g} % of the requests, as {}"
        self._told = [told.format(100 * step, slot.reference) for step in self._steps]
        """What the tag tells of each step: how far it got on any front."""
        self._loaded: LoadedModel | None = None
        self._checked: LoadedModel | None = None
        """The version whose failures are being checked."""
        self._errands = BackgroundTasks()
        self._step, self._since = 0, 0.0
        self._stopped = ""
        self._version: Version | None = None
        self._looks = 0.0
        """How often the registry was looked at since its tag told that it is stopped; -inf before."""
        # What the registry says of a version is looked at before anybody is given to it.
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
        """Whether it may get requests: who takes its alias away calls it off."""
        return self.slot.is_resolved and self._split.is_compatible(self.slot)

    def tick(self, watches: dict[LoadedModel, TrafficWindow], first: LoadedModel | None, now: float) -> None:
        live = self.slot.live if self._is_candidate else None
        if live is not self._loaded:
            self._abort()
            self._loaded = live
            if live:
                self._start(live, watches, now)
        if live is None or first is None or self._stopped_in_registry(live, watches, now):
            return
        is_asked = self._split.share(self._split.primary) > 0
        new, old = watches[live].sample(), watches[first].baseline(is_asked=is_asked)
        if self._checked is live:
            return
        if reason := failure_reason(new, old, self._limits):
            if new.failed and live.request_counts.raised:
                self._checked = live
                self._errands.spawn(self._check(live, first, watches))
            else:
                self._stop(live, reason)
        elif self._is_due(new, now):
            self._step += 1
            self._start_step(live, watches, now)

    async def _check(
        self, live: LoadedModel, first: LoadedModel, watches: Mapping[LoadedModel, TrafficWindow]
    ) -> None:
        """Stop the version unless the first one fails on the same requests."""
        try:
            await excuse(live.request_counts, first, with_deaths=False)
        finally:
            self._checked = None
        if live is self._loaded and not self._stopped and {live, first} <= watches.keys():
            is_asked = self._split.share(self._split.primary) > 0
            old = watches[first].baseline(is_asked=is_asked)
            if reason := failure_reason(watches[live].sample(), old, self._limits):
                self._stop(live, reason)

    def _abort(self) -> None:
        """Be done with a version that is no candidate any more."""
        self._split.set_weight(self.slot, 0.0)
        if (left := self._loaded) and not self._stopped:
            log.info("%s gets nothing any more", left.version, extra=self.slot.in_logs | left.version.in_logs)
            told = self._told
            self._herald.set_tag(
                left.version, TAG, lambda said: f"was given {said}" if said in told else said
            )
        self._stopped = ""

    def _start(self, live: LoadedModel, watches: dict[LoadedModel, TrafficWindow], now: float) -> None:
        self._step, self._stopped = 0, ""
        if live.version.tags.get(TAG, "").startswith(STOPPED):
            self._split.set_weight(self.slot, 0.0)
        else:
            self._start_step(live, watches, now)

    def _start_step(self, live: LoadedModel, watches: dict[LoadedModel, TrafficWindow], now: float) -> None:
        """Begin with a step."""
        self._since = now
        self._split.set_weight(self.slot, self._steps[self._step])
        for loaded in filter(None, (live, self._split.primary.live)):
            watches[loaded].begin()
        log.info("%s gets %s", live.version, self._told[self._step], extra=live.version.in_logs)
        self._herald.set_tag(live.version, TAG, partial(_furthest_step, self._told[self._step :]))

    def _is_due(self, new: RequestStats, now: float) -> bool:
        held = now - self._since >= self._limits.canary_seconds and new.is_enough
        return held and self._step < len(self._steps) - 1

    def _stopped_in_registry(
        self, live: LoadedModel, watches: dict[LoadedModel, TrafficWindow], now: float
    ) -> bool:
        """Whether it is to get nothing: another front, or a run before this, may have said so already."""
        if live.version is not self._version:
            self._version, self._looks = live.version, self._looks + 1
        tag = live.version.tags.get(TAG, "")
        if tag.startswith(STOPPED):
            self._looks = _LOOKS
            if not self._stopped:
                self._stop_routing(tag)
        elif self._stopped and self._looks >= _LOOKS:  # a person has taken the tag away
            self._start(live, watches, now)
        return bool(self._stopped)

    def _stop(self, live: LoadedModel, reason: str) -> None:
        share = self._split.share(self.slot)
        reason = f"{STOPPED} at {100 * share:.4g} % of the requests: {reason}"
        said = "%s is out of the requests to %s: %s"
        log.error(said, live.version, self.slot.reference.name, reason, extra=self.slot.in_logs)
        self._stop_routing(reason)
        self._looks = -math.inf
        self._herald.set_tag(live.version, TAG, lambda _: reason, partial(self._is_told, live))

    def _is_told(self, live: LoadedModel) -> None:
        """Look whether the tag is taken away, from now on: a person may do so before it is ever seen here."""
        if live is self._loaded:
            self._version, self._looks = live.version, 0

    def _stop_routing(self, reason: str) -> None:
        self._stopped = reason
        self._split.set_weight(self.slot, 0.0)


def _furthest_step(told: Sequence[str], said: str) -> str:
    """What the tag is to tell of the first of these steps: another front may be at a later one already.

    What other steps, or other references, have told is past.
    """
    return said if said.startswith(STOPPED) or said in told else told[0]
