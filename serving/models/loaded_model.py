"""One model version that is loaded: its contract, its processes, and who holds it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Self

import orjson
from cachetools import LRUCache

from serving.batching.sharing_proof import Sharing
from serving.contract import mlmodel
from serving.contract.column_validator import ColumnValidator
from serving.contract.model_files import ModelFiles
from serving.models import input_example, verification
from serving.models.model_calls import Calls, Part
from serving.models.probation import RequestCounts
from serving.models.replay import Comparison, RecordedRequest, RequestRecorder
from serving.models.verification import Verification
from serving.processes import gc_tuning
from serving.processes.launcher import Launcher
from serving.processes.pool import Pool
from serving.protocols import json_rows
from serving.protocols.mlflow_scoring import ScoringParser
from serving.settings.groups import LimitSettings, RuntimeSettings
from serving.telemetry.metrics import ExitReason, Gauges, Metrics, VersionMetrics
from serving.version import Artifacts, Version

log = logging.getLogger("serving.model")

Cache = LRUCache[Any, tuple[bytes, Sequence[Part], Sequence[tuple[bytes, bytes]]]]


class LoadState(Enum):
    """Where a loaded version stands."""

    STARTING = "starting"
    LIVE = "live"
    DRAINING = "draining"
    CLOSED = "closed"


class LoadedModel:
    """A model version with processes of its own; held with `with` while a request is under way.

    Raises:
        Untypable: no contract can be made of it.
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
        self.version, self.artifacts, self._metrics, self.recorder = version, artifacts, metrics, recorder
        self.metrics: VersionMetrics  # once it takes requests
        self.contract = mlmodel.contract(files.mlmodel, version.name, limits.max_rows)
        self.example = input_example.example(files, self.contract)
        if self.example:
            self.contract = self.contract.with_example(self.example.shown)
        self.reader = json_rows.BatchReader(self.contract)
        """Reads the bodies of batches."""
        self.intake = ColumnValidator(self.contract)
        """Checks columns that came in any protocol."""
        self.scoring = ScoringParser(self.contract, self.intake)
        """Reads the bodies of MLflow's protocol."""
        self.told = orjson.dumps({"name": version.name, "version": version.version})
        """The version as answers tell it."""
        self.headers = version.in_headers
        self.cache: Cache | None = (
            LRUCache(limits.cache_entries) if version.name in limits.cached_models else None
        )
        """Its last answers and their parts, by what was asked; None unless the model is to have that."""
        self.from_disk = False
        """Whether it came from the copy on disk, as the registry was away."""
        self.tally = RequestCounts()
        self._verification: Verification
        self.unverified = ""
        """Why it went live without having answered an example; empty if it has."""
        self.comparison: Comparison | None = None
        """How it answered live requests before it went live."""
        self.loaded_at = datetime.now(UTC)
        self.state, self.used_at = LoadState.STARTING, 0.0
        """When the last request on it was over, by the monotonic clock."""
        self._runtime, self._limits, self._warnings = runtime, limits, warnings
        self._leases, self._unheld = 0, asyncio.Event()
        self.calls = Calls(
            version,
            lambda: self.contract,
            limits,
            runtime,
            record=lambda request: self.recorder.add(request),
            note=lambda *call: self.metrics.observe_call(*call),
            has_process=lambda: self._pool.has_process,
        )
        """Takes its requests, once it is live."""
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
            on_restart=lambda ending: self.metrics.restarts[ending].inc(),
        )

    def __repr__(self) -> str:
        return f"<Loaded {self.version} {self.state.value} leases={self._leases}>"

    @property
    def warnings(self) -> list[str]:
        """What a person should look at, though it is live."""
        found = [
            mlmodel.unverified(str(self.version), self.unverified) if self.unverified else "",
            self.tally.warning(str(self.version)),
            "it was brought up from the copy on disk, as the registry was away" if self.from_disk else "",
        ]
        return [*filter(None, found), *self.contract.warnings, *self._warnings]

    def refresh(self, version: Version) -> None:
        """Take over what has changed about the version in the registry, which is there."""
        self.version = replace(version, location=self.version.location)
        self.from_disk = False

    def mark_from_disk(self) -> None:
        """Record that it came from the copy on disk while the registry was unreachable."""
        self.from_disk = True

    def reset_counts(self) -> None:
        """Count requests from zero: a version that goes live again is not judged by its earlier failures."""
        self.tally = RequestCounts()

    @property
    def pids(self) -> list[int]:
        """The ids of its processes."""
        return [replica.pid for replica in self._pool.replicas if replica.pid is not None]

    @property
    def has_process(self) -> bool:
        """Whether one of its processes is up."""
        return self._pool.has_process

    @property
    def in_use(self) -> bool:
        """Whether a request is under way on it."""
        return self._leases > 0

    async def start(self) -> None:
        """Start the model processes and have the first one answer the input example, or a generated row.

        Raises:
            LoadFailed: a process raised, hung or died while loading.
            VerificationFailed: it does not answer the example as its contract says.
        """
        try:
            await self._pool.start()
            self._verification = await verification.verify(
                self.contract, self.example, self._pool, self._runtime.load_seconds
            )
            self.contract, self.unverified = self._verification.contract, self._verification.unverified
        except BaseException:
            self.close()
            raise

    async def replay(self, recorded: Sequence[RecordedRequest], decided: Sharing | None) -> None:
        """Find out whether callers may share a call, answer what another version has answered, and compare.

        `decided` is what is known of the former.

        Raises:
            VerificationFailed: it fails on one of the requests.
        """
        found = await verification.rehearse(
            self._verification,
            self.example,
            self._pool,
            self._runtime.load_seconds,
            recorded,
            decided=decided,
        )
        self.comparison = found.comparison
        self.calls.begin(found.sharing)

    def forget_requests(self, most: int) -> None:
        """Record requests anew: those of the version before need not fit this one."""
        self.recorder = RequestRecorder(most)

    def activate(self) -> None:
        """Take requests, and have processes that die replaced."""
        self.state, self.loaded_at = LoadState.LIVE, datetime.now(UTC)
        gauges = Gauges(lambda: self.calls.waiting, lambda: self._leases, self._pool.memory)
        self.metrics = self._metrics.for_version(self.version.name, self.version.label, gauges)
        self._pool.keep()

    def _count_death(self, ending: ExitReason) -> None:
        self.metrics.deaths[ending].inc()
        self.tally.deaths += ending is not ExitReason.MEMORY

    # -- use

    def __enter__(self) -> Self:
        self._leases += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._leases -= 1
        if not self._leases:
            self.used_at = time.monotonic()
            self._unheld.set()

    # -- drain, close

    @property
    def _drain_seconds(self) -> float:
        streaming = self._limits.stream_seconds if self.contract.streams else 0.0
        return max(self._runtime.drain_seconds, streaming)

    async def drain(self) -> None:
        """Wait until no request holds it, at most for the drain time, then end its processes."""
        self.state = LoadState.DRAINING
        try:
            async with asyncio.timeout(self._drain_seconds):
                while self._leases:
                    self._unheld.clear()
                    await self._unheld.wait()
        except TimeoutError:
            log.warning("%r is still held and is ended", self, extra=self.version.in_logs)
        finally:
            self.close()
            gc_tuning.schedule_collect()

    def close(self) -> None:
        """End its processes now."""
        if self.state in (LoadState.LIVE, LoadState.DRAINING):
            self.metrics.retire()
        self.state = LoadState.CLOSED
        self._pool.kill()
