"""Weighted references: the parts of the requests rise by steps, and fall to nothing where one does badly."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.groups import Trying
from serving.registry.herald import Herald
from serving.runtime.exchange import Exchange, Observer
from serving.runtime.loaded import Loaded
from serving.runtime.slot import Slot
from serving.runtime.split import Split

log = logging.getLogger("serving.canary")
TAG = "serving.canary"
"""Tells in the registry how far a version got; one that begins with `STOPPED` holds for every front."""
STOPPED = "stopped"
_SECONDS_BETWEEN_LOOKS = 1.0
_FEWEST_REQUESTS = 100
_FEWEST_FAILURES = 5
_MOST_TIMES = 1000
_NO_MATTER_SECONDS = 0.005
"""A difference of so little is noise, whatever the ratio."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the requests to one version came to since a moment: how many, how many failed, and its times."""

    requests: int
    failed: int
    p95: float
    """The 95th percentile of the seconds that the last thousand took; 0 if there are none."""

    @property
    def failing(self) -> float:
        """The share that failed."""
        return self.failed / max(1, self.requests)


def verdict(new: Sample, old: Sample, limits: Trying) -> str | None:
    """Why the new version should get no requests; None if it should."""
    if new.failed >= _FEWEST_FAILURES and new.failing > old.failing + limits.canary_max_failing:
        return f"{new.failed} of {new.requests} requests failed on it"
    if min(new.requests, old.requests) < _FEWEST_REQUESTS:
        return None
    slower = new.p95 - old.p95
    if slower > _NO_MATTER_SECONDS and new.p95 > limits.canary_max_latency * old.p95:
        return f"its 95th percentile is {new.p95 * 1e3:.3g} ms, as against {old.p95 * 1e3:.3g} ms"
    return None


@dataclass(slots=True)
class Watch:
    """A version's requests since a moment."""

    loaded: Loaded
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_TIMES))
    refused: int = 0
    """Requests that were leased it and got a 5xx, for want of time or of a process, too."""
    _answered: int = 0
    _failed: int = 0

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._answered, self._failed = self.loaded.tally.answered, self.loaded.tally.failed
        self.refused = 0
        self.seconds.clear()

    def sample(self) -> Sample:
        """What there was since."""
        answered = self.loaded.tally.answered - self._answered
        # A stream may break off behind its status.
        failed = max(self.loaded.tally.failed - self._failed, self.refused)
        p95 = float(np.percentile(self.seconds, 95)) if self.seconds else 0.0
        return Sample(answered + failed, failed, p95)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a weighted reference stands."""

    share: float
    """The part of the requests that it is meant to get, between 0 and 1."""
    state: str
    """first, waiting (nothing is live, or it would break clients), rising, steady, or stopped."""
    reason: str = ""


class Canary(Observer, Collector):
    """Watches the references that share a model's requests; each is measured by the first.

    Args:
        split: shares the requests.
        limits: the steps, and what is too bad.
        herald: tells in the registry how far a version got.
    """

    def __init__(self, split: Split, limits: Trying, herald: Herald) -> None:
        self.split = split
        self._limits, self._herald = limits, herald
        self._challengers = [_Challenger(split, slot, limits, herald) for slot in split.slots[1:]]
        self._watches: dict[Loaded, Watch] = {}

    def standing(self, slot: Slot) -> Standing:
        """How a reference stands."""
        for challenger in self._challengers:
            if challenger.slot is slot:
                return challenger.standing()
        return Standing(self.split.share(slot), "first")

    def answered(self, exchange: Exchange) -> None:
        """Note how long a request took."""
        if watch := self._watches.get(exchange.live):
            watch.seconds.append(exchange.ended - exchange.began)

    def refused(self, scope: MutableMapping[str, Any], status: int, error: Exception) -> None:
        """Note a request that a version has failed on, by whatever fault of its own or of its processes."""
        if status >= 500 and "leased" in scope:
            for live, watch in self._watches.items():
                watch.refused += scope["leased"] == (live.version.name, live.version.label)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    def tick(self, now: float) -> None:
        """Look at each reference once, at a moment in seconds."""
        lives = {slot.live for slot in self.split.slots if slot.live}
        self._watches = {live: self._watches.get(live) or Watch(live) for live in lives}
        first = self.split.first.live
        for challenger in self._challengers:
            challenger.tick(self._watches, first, now)

    def collect(self) -> Iterator[Metric]:
        """The parts of the requests, for Prometheus."""
        shares = GaugeMetricFamily(
            "serving_split_share_ratio",
            "Part of a model's requests that a weighted reference is meant to get.",
            labels=("model", "uri"),
        )
        for slot in self.split.slots:
            shares.add_metric([slot.reference.name, slot.reference.uri], self.split.share(slot))
        yield shares


class _Challenger:
    """One reference that is measured by the first."""

    def __init__(self, split: Split, slot: Slot, limits: Trying, herald: Herald) -> None:
        self.slot = slot
        self._split, self._limits, self._herald = split, limits, herald
        self._steps: Sequence[float] = [step / 100 for step in limits.canary_steps] or [split.share(slot)]
        self._loaded: Loaded | None = None
        self._step, self._since = 0, 0.0
        self._stopped = ""
        self._is_told = False
        split.give(
            slot, 0.0
        )  # what the registry says of a version is looked at before anybody is given to it

    def standing(self) -> Standing:
        share = self._split.share(self.slot)
        if self._stopped:
            return Standing(share, "stopped", self._stopped)
        if not self._split.fits(self.slot):
            reason = "it would break clients of the first" if self.slot.live else self.slot.reason
            return Standing(share, "waiting", reason)
        return Standing(share, "rising" if self._step < len(self._steps) - 1 else "steady")

    def tick(self, watches: dict[Loaded, Watch], first: Loaded | None, now: float) -> None:
        live = self.slot.live
        if live is not self._loaded:
            self._loaded = live
            if live:
                self._begin(watches, now)
            else:
                self._split.give(self.slot, 0.0)
        if live is None or first is None or not self._split.fits(self.slot):
            return
        if self._heeds_registry(live, watches, now):
            return
        new, old = watches[live].sample(), watches[first].sample()
        if reason := verdict(new, old, self._limits):
            self._stop(live, reason)
        elif self._is_due(new, now):
            self._step += 1
            self._enter(watches, now)

    def _begin(self, watches: dict[Loaded, Watch], now: float) -> None:
        self._step, self._stopped, self._is_told = 0, "", False
        if self._loaded and self._loaded.version.tags.get(TAG, "").startswith(STOPPED):
            self._split.give(self.slot, 0.0)
        else:
            self._enter(watches, now)

    def _enter(self, watches: dict[Loaded, Watch], now: float) -> None:
        """Begin with a step."""
        self._since = now
        self._split.give(self.slot, self._steps[self._step])
        for watch in watches.values():
            watch.begin()
        if self._loaded:
            told = f"{100 * self._steps[self._step]:.4g} % of the requests, as {self.slot.reference}"
            log.info("%s gets %s", self._loaded.version, told, extra=self._loaded.version.in_logs)
            self._herald.note(
                self._loaded.version, TAG, lambda said: said if said.startswith(STOPPED) else told
            )

    def _is_due(self, new: Sample, now: float) -> bool:
        held = now - self._since >= self._limits.canary_seconds and new.requests >= _FEWEST_REQUESTS
        return held and self._step < len(self._steps) - 1

    def _heeds_registry(self, live: Loaded, watches: dict[Loaded, Watch], now: float) -> bool:
        """Whether it is to get nothing: another front, or a run before this, may have said so already."""
        tag = live.version.tags.get(TAG, "")
        if tag.startswith(STOPPED):
            self._is_told = True
            if not self._stopped:
                self._set_aside(tag)
        elif self._stopped and self._is_told:  # a person has taken the tag away
            self._begin(watches, now)
        return bool(self._stopped)

    def _stop(self, live: Loaded, reason: str) -> None:
        share = self._split.share(self.slot)
        reason = f"{STOPPED} at {100 * share:.4g} % of the requests: {reason}"
        said = "%s is out of the requests to %s: %s"
        log.error(said, live.version, self.slot.reference.name, reason, extra=self.slot.in_logs)
        self._set_aside(reason)
        self._herald.note(live.version, TAG, lambda _: reason)

    def _set_aside(self, reason: str) -> None:
        self._stopped = reason
        self._split.give(self.slot, 0.0)
