"""Verifies a version before it goes live, the cheap checks first; every rejection states its reason."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from cachetools import LRUCache

from serving.batching.sharing_proof import Sharing, reported
from serving.contract import model_files
from serving.contract.compatibility import breaking_changes, input_changes
from serving.errors import ProcessDied
from serving.models.loaded_model import LoadedModel
from serving.models.slot import LastLive, Slot
from serving.processes import environments
from serving.processes.environments import Difference, Environments, Needs
from serving.processes.launcher import Launcher
from serving.promotion_errors import (
    DigestMismatch,
    FrontDied,
    IncompatibleContract,
    LoadFailed,
    VerificationFailed,
)
from serving.registry import load_attempts
from serving.registry.artifact_files import check_files
from serving.registry.artifact_policy import ArtifactPolicy
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.load_attempts import LoadAttempts
from serving.registry.promotion_check import Promotion, PromotionCheck
from serving.settings.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.version import Artifacts, Version

log = logging.getLogger("serving.gate")
_MAX_SHARING_DECISIONS = 1000
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)
_MAX_DEATHS = 3
"""A version is rejected after so many deaths in a row of the fork server of its own environment."""


class Gate:
    """Loads versions and verifies them.

    The checks in order: the operator's policy allows it; the artifacts are complete, and have the registered
    digest; the signature can be typed; the contract breaks no client of the live one; it loads in time; it
    predicts its own input example; it predicts the last live requests. The checks of features run before it
    is loaded, and at the end.
    """

    def __init__(
        self,
        settings: Settings,
        registry: RegistryClient,
        store: ArtifactStore,
        launcher: Launcher,
        metrics: Metrics,
    ) -> None:
        self._settings, self._registry, self._policy = settings, registry, ArtifactPolicy(settings)
        self._store, self._launcher, self._metrics = store, launcher, metrics
        self._sharing: LRUCache[str, Sharing] = LRUCache(_MAX_SHARING_DECISIONS)
        """Whether callers may share a call of versions that were loaded before, by digest."""
        self._environments = Environments(
            settings.store_dir / "environments", strict=settings.strict_artifacts, packages=settings.packages
        )
        self.checks: Sequence[PromotionCheck] = ()
        """Conditions of features."""
        self.attempts = LoadAttempts(store.attempts)
        self._verifying, self._idle, self._suspect = 0, asyncio.Event(), asyncio.Lock()
        self._idle.set()
        self._deaths: Counter[tuple[str, str | None, str]] = Counter()

    async def load_and_verify(self, version: Version, slot: Slot) -> LoadedModel:
        """Return the version with its processes running, verified and ready to be swapped in.

        Raises:
            Rejected: it fails a check.
            PromotionWaits: a person has to do something first.
            RegistryError: its artifacts could not be downloaded.
            ProcessDied: a process or the system failed, through no fault of the version.
        """
        try:
            if deaths := await self.deaths(version):
                return await self._load_alone(version, slot, deaths)
            return await self._load(version, slot)
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            raise ProcessDied(f"the system has no resources left: {error.strerror}") from error

    async def deaths(self, version: Version) -> int:
        """Return how many fronts in a row died while they verified a version that has not served before."""
        deaths = await asyncio.to_thread(self.attempts.deaths, version)
        return 0 if deaths and await self._store.has_served(version) else deaths

    async def _load_alone(self, version: Version, slot: Slot, deaths: int) -> LoadedModel:
        """Load a version with which a front died, alone and last, so that another death has one cause."""
        if deaths >= load_attempts.MAX_DEATHS:
            raise FrontDied(
                f"the front died while it was being verified, {deaths} times in a row: promote it again, or "
                "change one of its tags, to try it again"
            )
        async with self._suspect:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.load_seconds):
                    await self._idle.wait()
            return await self._load(version, slot)

    async def _load(self, version: Version, slot: Slot) -> LoadedModel:
        version = await self._registry.complete(version)
        await asyncio.to_thread(self._policy.check_source, version)
        download = partial(self._registry.download, check=self._policy.check_folder)
        artifacts = await self._store.fetch(version, download)
        expected = version.tags.get("serving.digest")
        if expected and expected != artifacts.digest:
            await self._store.discard(version)
            raise DigestMismatch(
                f"its artifacts are not those that were registered: {artifacts.digest}, not {expected[:100]}"
            )
        return await self.verify(version, artifacts, slot)

    async def verify(self, version: Version, artifacts: Artifacts, slot: Slot) -> LoadedModel:
        """Load and verify a version whose artifacts are on the disk; see `load_and_verify`."""
        has_served = await self._store.has_served(version, slot.reference.uri)
        promotion = Promotion(slot, version, artifacts, has_served)
        for check in self.checks:
            await check.before_load(promotion)
        self._verifying += 1
        self._idle.clear()
        try:
            async with self.attempts.mark(version):
                return await self._verify(promotion)
        finally:
            self._verifying -= 1
            if not self._verifying:
                self._idle.set()

    async def _verify(self, promotion: Promotion) -> LoadedModel:
        version, artifacts, slot = promotion.version, promotion.artifacts, promotion.slot
        await asyncio.to_thread(check_files, artifacts.folder.resolve())
        files = await model_files.read(artifacts.folder)
        await asyncio.to_thread(self._policy.check_model, artifacts.folder, files.mlmodel)
        needs = await asyncio.to_thread(environments.read, files)
        differing = await asyncio.to_thread(environments.differences, needs)
        if self._settings.environments:
            self._policy.check_requirements(files, needs)
        launcher = await self._launcher_for(needs, differing)
        warnings = [] if launcher.is_dedicated else _warnings(version, differing)
        loaded = await asyncio.to_thread(
            LoadedModel,
            version,
            artifacts,
            files,
            launcher,
            self._settings,
            self._settings,
            slot.recorder,
            self._metrics,
            warnings=warnings,
        )
        last_live = slot.last_live
        if last_live:
            self._reject_breaking(last_live, input_changes(last_live.contract, loaded.contract), version)
        with self._explain_failure(version, launcher, differing):
            await loaded.start()
        try:
            # The output types are known only after the example was predicted.
            changes = breaking_changes(last_live.contract, loaded.contract) if last_live else []
            if last_live and changes:
                self._reject_breaking(last_live, changes, version)
                loaded.forget_requests(self._settings.replay_requests)
            await loaded.replay(
                loaded.recorder.last(), reported(version.tags) or self._sharing.get(artifacts.digest)
            )
            for check in self.checks:
                await check.before_live(promotion, loaded)
        except BaseException:
            loaded.close()
            raise
        self._sharing[artifacts.digest] = loaded.calls.sharing
        for warning in warnings:
            log.warning("%s", warning, extra=version.in_logs)
        loaded.activate()
        return loaded

    async def _launcher_for(self, needs: Needs, differing: Sequence[Difference]) -> Launcher:
        if not (self._settings.environments and (differing or needs.fault)):
            return self._launcher
        return self._launcher.with_interpreter(await self._environments.interpreter(needs))

    @contextmanager
    def _explain_failure(
        self, version: Version, launcher: Launcher, differing: Sequence[Difference]
    ) -> Iterator[None]:
        """Add the packages that differ from the version's requirements to a failure in the block."""
        try:
            yield
        except (LoadFailed, VerificationFailed) as error:
            if launcher.is_dedicated or not differing:
                raise
            hint = f"It requires {environments.describe(differing)}: {environments.REMEDY}"
            raise type(error)(f"{error}. {hint}") from error
        except ProcessDied as error:
            if not launcher.is_dedicated:
                raise
            self._deaths[version.identity] += 1
            if self._deaths[version.identity] < _MAX_DEATHS:
                raise
            del self._deaths[version.identity]
            raise LoadFailed(f"{error} ({_MAX_DEATHS} times in a row)") from error
        self._deaths.pop(version.identity, None)

    def _reject_breaking(self, last_live: LastLive, changes: Sequence[str], version: Version) -> None:
        if changes and not (
            self._settings.allow_breaking or version.tags.get("serving.allow_breaking") == "true"
        ):
            raise IncompatibleContract(
                f"it would break clients of {last_live.version}: {'; '.join(changes[:10])}. "
                "Set its tag serving.allow_breaking to true to let it go live anyway"
            )


def _warnings(version: Version, differing: Sequence[Difference]) -> list[str]:
    """Return a warning if a version goes live with packages that differ from those it was logged with."""
    relevant = [difference for difference in differing if difference.matters]
    if not relevant:
        return []
    return [
        f"{version} may predict differently than when it was logged: it requires "
        f"{environments.describe(relevant)}: {environments.REMEDY}"
    ]
