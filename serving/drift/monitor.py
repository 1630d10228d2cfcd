"""Drift: what models are asked and answer now, beside the profile of what they were trained on.

A request costs no more than putting a reference to its rows and answer aside, and of a busy service only some
rows are looked at; they are counted once a second, a little at a time between requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cachetools import LRUCache
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from serving.contract.reference_profile import Profile
from serving.drift.histogram import DecayedHistogram
from serving.drift.sampling import SampledInputs, SampledRequest, sampled_predictions
from serving.hooks import InferenceEvent, RequestHook
from serving.http.readiness import StatusPart
from serving.models.loaded_model import LoadedModel, LoadState
from serving.models.slot import Slot

_ROWS_A_SECOND = 100
_MAX_ROWS_AT_ONCE = 1000
_BYTES_A_ROW = 4096
_VALUES_AT_ONCE = 2000
_MAX_FINDINGS = 20
_SECONDS_AT_ONCE = 0.001
_MAX_KEPT = 100
"""Versions of which the counts are kept, loaded or not: a model on demand may sleep between requests."""

Labels = tuple[str, str]


class DriftState(BaseModel):
    """How far a column has drifted from what the version was trained on."""

    column: str
    side: str = Field(description="input or output")
    psi: float = Field(description="population stability index")
    rows: int = Field(description="so many of the last rows it tells of")


class DriftFields(BaseModel):
    """The field of a model's state."""

    drift: list[DriftState] | None = Field(
        None, description="the columns that have drifted most; null without a profile or before enough rows"
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """How far a column has drifted; the side is input or output."""

    column: str
    side: str
    psi: float
    rows: int
    change: str
    """What there is more of than there was, if it is above the threshold."""

    def __str__(self) -> str:
        return (
            f"the {self.side} {self.column} has drifted from what the model was trained on "
            f"(PSI {self.psi:.2f} over the last {self.rows:,} rows): {self.change}"
        )

    @property
    def state(self) -> DriftState:
        """As it is told."""
        return DriftState(column=self.column, side=self.side, psi=round(self.psi, 4), rows=self.rows)


class VersionDrift:
    """What is seen of one version."""

    def __init__(self, profile: Profile, threshold: float) -> None:
        self.left = _MAX_ROWS_AT_ONCE
        """How many rows may be put aside."""
        self.looked_at = 0
        self.findings: Sequence[Finding] = ()
        """Of each column with enough rows, the worst first."""
        self._threshold = threshold
        self._samples: list[SampledRequest] = []
        self._inputs, self._outputs = (
            {name: DecayedHistogram(each, profile.rows, threshold) for name, each in side.items()}
            for side in (profile.inputs, profile.outputs)
        )

    def add(self, exchange: InferenceEvent) -> None:
        """Put a request aside, or every so many of its rows."""
        tickets = [ticket for _, ticket in exchange.source_parts]
        rows = sum(len(ticket.rows) for ticket in tickets)
        step = math.ceil(rows / self.left) or 1
        self._samples += [SampledRequest(ticket.rows, ticket.future.result(), step) for ticket in tickets]
        # So that large rows don't fill memory, they count for several.
        size = len(exchange.body) or sum(getattr(ticket.rows, "nbytes", 0) for ticket in tickets)
        self.left -= max(rows // step, size // _BYTES_A_ROW)

    def steps(self) -> Iterator[None]:
        """Count what was put aside, a little in each step."""
        self.left = min(_MAX_ROWS_AT_ONCE, max(0, self.left) + _ROWS_A_SECOND)
        samples, self._samples = self._samples, []
        some = max(10, _VALUES_AT_ONCE // (len(self._inputs) or 1))
        for start in range(0, len(samples), some):
            yield from self._count(samples[start : start + some])
        if samples:
            yield from self._find()

    def _count(self, samples: Sequence[SampledRequest]) -> Iterator[None]:
        asked = SampledInputs(samples)
        self.looked_at += len(asked)
        for name, sketch in self._inputs.items():
            sketch.count(asked.column(name))
            yield
        for predictions in sampled_predictions(samples):
            for name, sketch in self._outputs.items():
                sketch.count([prediction.get(name) for prediction in predictions])
            yield

    def _find(self) -> Iterator[None]:
        found = []
        for side, sketches in (("input", self._inputs), ("output", self._outputs)):
            for name, sketch in sketches.items():
                if sketch.is_significant:
                    psi = sketch.psi
                    change = sketch.describe_shift() if psi > self._threshold else ""
                    found.append(Finding(name, side, psi, sketch.rows, change))
                    yield
        self.findings = sorted(found, key=lambda each: -each.psi)


class Drift(RequestHook, Collector):
    """Watches every version that has a profile.

    Args:
        threshold: The PSI above which a column has drifted.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._watches: dict[LoadedModel, VersionDrift] = {}
        self._kept: LRUCache[Labels, VersionDrift] = LRUCache(_MAX_KEPT)

    def on_response(self, exchange: InferenceEvent) -> None:
        """Put a request aside, if there is room."""
        watch = self._watches.get(exchange.live)
        if watch is None:
            if (profile := exchange.live.contract.profile) is None:
                return
            watch = self._watches[exchange.live] = self._watch(exchange.live, profile)
        if watch.left > 0:
            watch.add(exchange)

    def _watch(self, live: LoadedModel, profile: Profile) -> VersionDrift:
        """What has been seen of a version before, in whatever processes it ran, or nothing yet."""
        return self._kept.setdefault(_labels(live), VersionDrift(profile, self._threshold))

    async def run(self) -> None:
        """Count once a second until cancelled, and let others have their turn."""
        while True:
            await asyncio.sleep(1)
            began = time.perf_counter()
            for _ in self._steps():
                if time.perf_counter() - began > _SECONDS_AT_ONCE:
                    await asyncio.sleep(0)
                    began = time.perf_counter()

    def tick(self) -> None:
        """Count what was put aside since the last time."""
        for _ in self._steps():
            pass

    def _steps(self) -> Iterator[None]:
        for watch in {*self._watches.values()}:
            yield from watch.steps()
        for live in [live for live in self._watches if live.state is LoadState.CLOSED]:
            del self._watches[live]

    def findings(self, live: LoadedModel) -> Sequence[Finding]:
        """Of each column of which there are enough rows, the worst first."""
        watch = self._watches.get(live)
        return watch.findings if watch else ()

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return the worst columns of the live version, and a warning for each that has drifted.

        The public part names no column and no value: it only counts the columns that have drifted.
        """
        findings = self.findings(slot.live) if slot.live else ()
        if public:
            drifted = len(self._drifted(findings))
            count = f"drifted inputs and outputs: {drifted}; /models/{slot.reference.name} tells which"
            return StatusPart(warnings=[count] if drifted else [])
        worst = findings[:_MAX_FINDINGS]
        return StatusPart(
            DriftFields(drift=[finding.state for finding in worst] or None),
            [str(finding) for finding in self._drifted(worst)],
        )

    def _drifted(self, findings: Sequence[Finding]) -> list[Finding]:
        return [each for each in findings if each.psi > self._threshold]

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        psi = GaugeMetricFamily(
            "serving_drift_psi",
            "Population stability index of a column, of the last rows and those the model was trained on.",
            labels=("model", "version", "column", "side"),
        )
        rows = CounterMetricFamily(
            "serving_drift_rows", "Rows that were looked at for drift.", labels=("model", "version")
        )
        for labels, watch in {_labels(live): watch for live, watch in self._watches.copy().items()}.items():
            rows.add_metric(labels, watch.looked_at)
            for each in watch.findings:
                psi.add_metric([*labels, each.column, each.side], each.psi)
        yield from (psi, rows)


def _labels(live: LoadedModel) -> Labels:
    version = live.version
    return version.name, version.version or version.model_id or ""
