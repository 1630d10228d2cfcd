"""Drift: compare the inputs and outputs of models with the profile of their training data.

A request only costs storing a reference to its rows and predictions, and a busy service samples its rows. The
samples are counted once per second, in short steps between requests.
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
from serving.drift.population_stability import DecayedHistogram
from serving.drift.sampling import SampledInputs, SampledRequest, sampled_predictions
from serving.hooks import InferenceEvent, RequestHook
from serving.http.readiness import StatusPart
from serving.models.loaded_model import LoadedModel, LoadState
from serving.models.slot import Slot

_ROWS_PER_SECOND = 100
_MAX_BUDGET = 1000
"""The number of rows that may be stored between two counts."""
_BYTES_PER_ROW = 4096
_VALUES_PER_STEP = 2000
_MAX_FINDINGS = 20
_MAX_STEP_SECONDS = 0.001
_MAX_VERSIONS = 100
"""Versions whose counts are kept, loaded or not: a model on demand may be unloaded between requests."""

Labels = tuple[str, str]


class DriftState(BaseModel):
    """The drift of a column from the training data."""

    column: str
    side: str = Field(description="input or output")
    psi: float = Field(description="population stability index")
    rows: int = Field(description="number of the last rows that the index represents")


class DriftFields(BaseModel):
    """The field of a model's state."""

    drift: list[DriftState] | None = Field(
        None, description="the columns that have drifted most; null without a profile or with too few rows"
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """The drift of a column; the side is input or output."""

    column: str
    side: str
    psi: float
    rows: int
    change: str
    """A phrase for people on the largest change, if the PSI is above the threshold."""

    def __str__(self) -> str:
        return (
            f"the {self.side} {self.column} has drifted from the training data "
            f"(PSI {self.psi:.2f} over the last {self.rows:,} rows): {self.change}"
        )

    @property
    def state(self) -> DriftState:
        """Return the drift as `/ready` reports it."""
        return DriftState(column=self.column, side=self.side, psi=round(self.psi, 4), rows=self.rows)


class VersionDrift:
    """The drift of one version."""

    def __init__(self, profile: Profile, threshold: float) -> None:
        self.budget = _MAX_BUDGET
        """The number of rows that may still be stored."""
        self.rows_seen = 0
        self.findings: Sequence[Finding] = ()
        """The drift of each column with enough rows, the largest first."""
        self._threshold = threshold
        self._samples: list[SampledRequest] = []
        self._inputs, self._outputs = (
            {name: DecayedHistogram(column, profile.rows, threshold) for name, column in side.items()}
            for side in (profile.inputs, profile.outputs)
        )

    def sample(self, event: InferenceEvent) -> None:
        """Store a request: all of its rows, or every nth if the budget is smaller."""
        parts = [pending for _, pending in event.source_parts]
        rows = sum(len(pending.rows) for pending in parts)
        step = math.ceil(rows / self.budget) or 1
        self._samples += [SampledRequest(pending.rows, pending.future.result(), step) for pending in parts]
        # Large rows count for several, so that they cannot fill the memory.
        size = len(event.body) or sum(getattr(pending.rows, "nbytes", 0) for pending in parts)
        self.budget -= max(rows // step, size // _BYTES_PER_ROW)

    def steps(self) -> Iterator[None]:
        """Count the stored requests in short steps."""
        self.budget = min(_MAX_BUDGET, max(0, self.budget) + _ROWS_PER_SECOND)
        samples, self._samples = self._samples, []
        size = max(10, _VALUES_PER_STEP // (len(self._inputs) or 1))
        for start in range(0, len(samples), size):
            yield from self._count(samples[start : start + size])
        if samples:
            yield from self._update_findings()

    def _count(self, samples: Sequence[SampledRequest]) -> Iterator[None]:
        inputs = SampledInputs(samples)
        self.rows_seen += len(inputs)
        for name, histogram in self._inputs.items():
            histogram.count(inputs.column(name))
            yield
        for predictions in sampled_predictions(samples):
            for name, histogram in self._outputs.items():
                histogram.count([prediction.get(name) for prediction in predictions])
            yield

    def _update_findings(self) -> Iterator[None]:
        findings = []
        for side, histograms in (("input", self._inputs), ("output", self._outputs)):
            for name, histogram in histograms.items():
                if histogram.is_significant:
                    psi = histogram.psi
                    change = histogram.describe_shift() if psi > self._threshold else ""
                    findings.append(Finding(name, side, psi, histogram.rows, change))
                    yield
        self.findings = sorted(findings, key=lambda finding: -finding.psi)


class Drift(RequestHook, Collector):
    """Monitors every version that has a profile.

    Args:
        threshold: The PSI above which a column has drifted.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._monitored: dict[LoadedModel, VersionDrift] = {}
        self._known: LRUCache[Labels, VersionDrift] = LRUCache(_MAX_VERSIONS)

    def on_response(self, event: InferenceEvent) -> None:
        """Store a request, if the budget allows."""
        drift = self._monitored.get(event.live)
        if drift is None:
            if (profile := event.live.contract.profile) is None:
                return
            drift = self._monitored[event.live] = self._of_version(event.live, profile)
        if drift.budget > 0:
            drift.sample(event)

    def _of_version(self, live: LoadedModel, profile: Profile) -> VersionDrift:
        """Return the drift of a version, which continues if the version was loaded before."""
        return self._known.setdefault(_labels(live), VersionDrift(profile, self._threshold))

    async def run(self) -> None:
        """Count once per second until cancelled, and let other tasks run in between."""
        while True:
            await asyncio.sleep(1)
            began = time.perf_counter()
            for _ in self._steps():
                if time.perf_counter() - began > _MAX_STEP_SECONDS:
                    await asyncio.sleep(0)
                    began = time.perf_counter()

    def tick(self) -> None:
        """Count the requests that were stored since the last tick."""
        for _ in self._steps():
            pass

    def _steps(self) -> Iterator[None]:
        for drift in {*self._monitored.values()}:
            yield from drift.steps()
        for live in [live for live in self._monitored if live.state is LoadState.CLOSED]:
            del self._monitored[live]

    def findings(self, live: LoadedModel) -> Sequence[Finding]:
        """Return the drift of each column with enough rows, the largest first."""
        drift = self._monitored.get(live)
        return drift.findings if drift else ()

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return the worst columns of the live version, and a warning for each that has drifted.

        The public part names no column and no value: it only counts the columns that have drifted.
        """
        findings = self.findings(slot.live) if slot.live else ()
        if public:
            drifted = len(self._drifted(findings))
            count = f"drifted inputs and outputs: {drifted}; /models/{slot.reference.name} names them"
            return StatusPart(warnings=[count] if drifted else [])
        worst = findings[:_MAX_FINDINGS]
        return StatusPart(
            DriftFields(drift=[finding.state for finding in worst] or None),
            [str(finding) for finding in self._drifted(worst)],
        )

    def _drifted(self, findings: Sequence[Finding]) -> list[Finding]:
        return [finding for finding in findings if finding.psi > self._threshold]

    def collect(self) -> Iterator[Metric]:
        """Return the drift of all columns for Prometheus."""
        psi = GaugeMetricFamily(
            "serving_drift_psi",
            "Population stability index of a column: recent rows against the training data.",
            labels=("model", "version", "column", "side"),
        )
        rows = CounterMetricFamily(
            "serving_drift_rows", "Rows sampled for drift detection.", labels=("model", "version")
        )
        by_labels = {_labels(live): drift for live, drift in self._monitored.copy().items()}
        for labels, drift in by_labels.items():
            rows.add_metric(labels, drift.rows_seen)
            for finding in drift.findings:
                psi.add_metric([*labels, finding.column, finding.side], finding.psi)
        yield from (psi, rows)


def _labels(live: LoadedModel) -> Labels:
    version = live.version
    return version.name, version.version or version.model_id or ""
