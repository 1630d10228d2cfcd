"""Canaries: shift traffic to a challenger in steps, and stop it when it does worse than the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.hooks import InferenceEvent, RequestHook
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.models.traffic_split import TrafficSplit
from serving.outcome_board import OutcomeBoard
from serving.registry.client import RegistryClient
from serving.registry.tag_writer import TagWriter
from serving.rollout.canary_analysis import TrafficWindow
from serving.rollout.canary_steps import CanaryStatus, Challenger
from serving.settings.rollout import RolloutSettings

_POLL_SECONDS = 1.0


class Canary(RequestHook, Collector):
    """Controls the traffic of the references that share a model; the first is the primary.

    Args:
        split: Distributes the requests.
        limits: The steps, and the limits for errors and latency.
        tag_writer: Writes the progress of a version to the registry.
        registry: Promotes a version at the end of its canary.
        outcomes: Has the outcomes of the predictions.
    """

    def __init__(
        self,
        split: TrafficSplit,
        limits: RolloutSettings,
        tag_writer: TagWriter,
        registry: RegistryClient,
        outcomes: OutcomeBoard,
    ) -> None:
        self.split = split
        self._challengers = [
            Challenger(split, slot, limits, tag_writer, registry, outcomes) for slot in split.slots[1:]
        ]
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
