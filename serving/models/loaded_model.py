"""A loaded model version: its contract, its processes and the requests that hold it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum

from serving.batching.sharing_proof import Sharing
from serving.codecs import predictions
from serving.contract import mlmodel
from serving.contract.column_validator import ColumnValidator
from serving.contract.model_files import ModelFiles
from serving.models import input_example, verification
from serving.models.leases import Leases
from serving.models.model_calls import ModelCalls
from serving.models.prediction_cache import PredictionCache
from serving.models.probation import RequestCounts
from serving.models.replay import Comparison, RecordedRequest, RequestRecorder
from serving.models.verification import Verification
from serving.processes import gc_tuning
from serving.processes.launcher import Launcher
from serving.processes.pool import Pool
from serving.processes.replica import Replica
from serving.protocols import json_rows
from serving.protocols.mlflow_scoring import ScoringParser
from serving.settings.groups import LimitSettings, RuntimeSettings
from serving.telemetry.metrics import ExitReason, Gauges, Metrics, VersionMetrics
from serving.version import Artifacts, Version

log = logging.getLogger("serving.model")


class LoadState(Enum):
    """The state of a loaded version."""

    STARTING = "starting"
    LIVE = "live"
    DRAINING = "draining"
    CLOSED = "closed"


class LoadedModel(Leases):
    """A model version with its own processes. A request holds it with `with`.

    Raises:
        UnsupportedSignature: the version has no signature that a contract can be derived from.
        VerificationFailed: its input example does not fit its own signature.
    """

    def __init__(
        self,
        version: Version,
        artifacts: Artifacts,
        files: ModelFiles,
        launcher: Launcher,
        limits: LimitSettings,
        runtime: RuntimeSettings,
        recorder: RequestRecorder,
        metrics: Metrics,
        warnings: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.version, self.artifacts, self._metrics, self.recorder = version, artifacts, metrics, recorder
        self.metrics: VersionMetrics  # exists after `activate`
        self.contract = mlmodel.contract(files.mlmodel, version.name, limits.max_rows)
        self.example = input_example.example(files, self.contract)
        if self.example:
            self.contract = self.contract.with_example(self.example.shown)
        self.reader = json_rows.BatchReader(self.contract)
        """Parses the bodies of batches."""
        self.column_validator = ColumnValidator(self.contract)
        """Validates columns of any protocol."""
        self.scoring = ScoringParser(self.contract, self.column_validator)
        """Parses the bodies of MLflow's scoring protocol."""
        self.model_json = predictions.model_json(version.name, version.version)
        """The `model` member of responses."""
        self.headers = version.in_headers
        is_cached = version.name in limits.cached_models
        self.cache = PredictionCache(limits.cache_entries) if is_cached else None
        self.from_disk = False
        """Whether it was loaded from the copy on disk because the registry was unavailable."""
        self.request_counts = RequestCounts()
        self._verification = Verification(self.contract)
        self.loaded_at = datetime.now(UTC)
        self.state = LoadState.STARTING
        self._runtime, self._limits, self._warnings = runtime, limits, [*warnings]
        self._evidence: list[str] = []
        self.calls = ModelCalls(
            version,
            lambda: self.contract,
            limits,
            runtime,
            record=lambda request: self.recorder.add(request),
            on_call=lambda *call: self.metrics.observe_call(*call),
            has_process=lambda: self._pool.has_process,
        )
        """Queues the requests of the live version."""
        self._pool = Pool(
            launcher,
            artifacts.folder,
            count=runtime.replicas,
            load_seconds=runtime.load_seconds,
            max_process_bytes=runtime.max_process_bytes,
            max_output_bytes=limits.max_output_bytes,
            log_context=version.in_logs,
            on_ready=self.calls.add,
            on_death=self._count_death,
            on_restart=lambda reason: self.metrics.restarts[reason].inc(),
        )

    def __repr__(self) -> str:
        return f"<LoadedModel {self.version} {self.state.value} leases={self._leases}>"

    @property
    def warnings(self) -> list[str]:
        """Warnings about the version, for `/ready`."""
        warnings = [
            mlmodel.unverified(str(self.version), self.unverified) if self.unverified else "",
            self.request_counts.warning(str(self.version)),
            "it was loaded from the copy on disk because the registry was unavailable"
            if self.from_disk
            else "",
        ]
        return [*filter(None, warnings), *self.contract.warnings, *self._warnings]

    @property
    def unverified(self) -> str:
        """The reason why the version is live although it has predicted no example; empty if it has."""
        return self._verification.unverified

    @property
    def comparison(self) -> Comparison | None:
        """How its predictions compared with recorded ones before it went live."""
        return self._verification.comparison

    def refresh(self, version: Version) -> None:
        """Update the facts about the version from the registry, for example its aliases and tags."""
        self.version = replace(version, location=self.version.location)
        self.from_disk = False

    def mark_from_disk(self) -> None:
        """Record that it came from the copy on disk while the registry was unreachable."""
        self.from_disk = True

    def reset_counts(self) -> None:
        """Count requests from zero: a version that goes live again is not judged by its earlier failures."""
        self.request_counts = RequestCounts()

    @property
    def pids(self) -> list[int]:
        """The ids of its processes."""
        return [replica.pid for replica in self._pool.replicas if replica.pid is not None]

    @property
    def has_process(self) -> bool:
        """Whether one of its processes is running."""
        return self._pool.has_process

    @property
    def live_reason(self) -> str:
        """Why it may go live: how it compares with the previous version, and what checks have found."""
        comparison = str(self.comparison or "")
        return "; ".join(filter(None, [comparison, *self._evidence]))

    def add_evidence(self, sentence: str, warning: str = "") -> None:
        """Record what a check has found before it goes live, and a warning for `/ready`."""
        self._evidence.append(sentence)
        self._warnings += [warning] if warning else []

    async def start_extra_process(self) -> Replica:
        """Start another process of the version, which receives no requests; the caller kills it.

        Raises:
            LoadFailed: it raised, hung or died while loading.
            ProcessDied: the fork server died.
        """
        return await self._pool.start_extra()

    async def start(self) -> None:
        """Start the model processes and predict the input example, or a generated row.

        Raises:
            LoadFailed: a process raised, hung or died while loading.
            VerificationFailed: the prediction for the example fails or does not fit the contract.
        """
        try:
            await self._pool.start()
            self._verification = await verification.verify(
                self.contract, self.example, self._pool, self._runtime.load_seconds
            )
            self.contract = self._verification.contract
        except BaseException:
            self.close()
            raise

    async def replay(self, recorded: Sequence[RecordedRequest], decided: Sharing | None) -> None:
        """Decide whether callers may share a call, then repeat recorded requests and compare predictions.

        Args:
            recorded: requests that another version has served.
            decided: an earlier decision on sharing, which then stands.

        Raises:
            VerificationFailed: one of the requests fails.
        """
        self._verification = await verification.replay(
            self._verification,
            self.example,
            self._pool,
            self._runtime.load_seconds,
            recorded,
            decided=decided,
        )
        self.calls.set_sharing(self._verification.sharing)

    def forget_requests(self, max_requests: int) -> None:
        """Start a new record of requests: those of the previous version may not fit this one."""
        self.recorder = RequestRecorder(max_requests)

    def activate(self) -> None:
        """Accept requests, and restart processes that die."""
        self.state, self.loaded_at = LoadState.LIVE, datetime.now(UTC)
        gauges = Gauges(lambda: self.calls.waiting, lambda: self._leases, self._pool.memory)
        self.metrics = self._metrics.for_version(self.version.name, self.version.label, gauges)
        self._pool.keep()

    def _count_death(self, reason: ExitReason) -> None:
        self.metrics.deaths[reason].inc()
        self.request_counts.deaths += reason is not ExitReason.MEMORY

    @property
    def _drain_seconds(self) -> float:
        streaming = self._limits.stream_seconds if self.contract.streams else 0.0
        return max(self._runtime.drain_seconds, streaming)

    async def drain(self) -> None:
        """Wait until no request holds it, at most for the drain time, then stop its processes."""
        self.state = LoadState.DRAINING
        try:
            if unfinished := await self.wait_until_released(self._drain_seconds):
                message = (
                    "stopping the processes of %s, though %d requests did not finish within the drain time"
                )
                log.warning(message, self.version, unfinished, extra=self.version.in_logs)
        finally:
            self.close()
            gc_tuning.schedule_collect()

    def close(self) -> None:
        """Stop its processes immediately."""
        if self.state in (LoadState.LIVE, LoadState.DRAINING):
            self.metrics.retire()
        self.state = LoadState.CLOSED
        self._pool.kill()
