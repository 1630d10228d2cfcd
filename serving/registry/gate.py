"""What a version has to pass before it goes live, the cheap checks first; each refusal says why."""

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
from serving.errors import (
    DigestMismatch,
    FrontDied,
    IncompatibleContract,
    LoadFailed,
    ProcessDied,
    VerificationFailed,
)
from serving.models.loaded_model import LoadedModel
from serving.models.slot import LastLive, Slot
from serving.processes import environments
from serving.processes.environments import Difference, Environments, Needs
from serving.processes.launcher import Launcher
from serving.registry import load_attempts
from serving.registry.artifact_files import check_files
from serving.registry.artifact_policy import ArtifactPolicy
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.load_attempts import LoadAttempts
from serving.settings.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.version import Artifacts, Version

log = logging.getLogger("serving.gate")
_MAX_DECISIONS = 1000
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)
_MAX_DEATHS = 3
"""A version is rejected when the fork server of its own environment has died so often in a row."""


class Gate:
    """Brings versions up, as far as they pass.

    In this order: the operator's rules let it in; the artifacts are complete, and those that were registered;
    the signature can be typed; the contract breaks no client of the live one; it loads in time; it answers
    its own input example; it answers the last live requests.
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
        self._sharing: LRUCache[str, Sharing] = LRUCache(_MAX_DECISIONS)
        """Whether callers may share a call of versions that were loaded before, by their digest."""
        self._environments = Environments(
            settings.store_dir / "environments", strict=settings.strict, packages=settings.packages
        )
        self.attempts = LoadAttempts(store.attempts)
        self._verifying, self._idle, self._suspect = 0, asyncio.Event(), asyncio.Lock()
        self._idle.set()
        self._deaths: Counter[tuple[str, str | None, str]] = Counter()

    async def load_and_verify(self, found: Version, slot: Slot) -> LoadedModel:
        """The version with its processes running, proven and ready to be swapped in.

        Raises:
            Rejected: it does not pass.
            RegistryError: its artifacts could not be had.
            ProcessDied: a process or the system failed, through no fault of the version.
        """
        try:
            if deaths := await self.deaths(found):
                return await self._bring_up_last(found, slot, deaths)
            return await self._bring_up(found, slot)
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            raise ProcessDied(f"the system has no resources left: {error.strerror}") from error

    async def deaths(self, version: Version) -> int:
        """Return how many fronts in a row died while they verified a version that has not served before."""
        deaths = await asyncio.to_thread(self.attempts.deaths, version)
        return 0 if deaths and await self._store.has_served(version) else deaths

    async def _bring_up_last(self, found: Version, slot: Slot, deaths: int) -> LoadedModel:
        """Bring up a version with which a front died, alone and last: another death has one cause."""
        if deaths >= load_attempts.MAX_DEATHS:
            raise FrontDied(
                f"the front died while it was being verified, {deaths} times in a row: promote it again, or "
                "change one of its tags, to have it tried again"
            )
        async with self._suspect:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.load_seconds):
                    await self._idle.wait()
            return await self._bring_up(found, slot)

    async def _bring_up(self, found: Version, slot: Slot) -> LoadedModel:
        version = await self._registry.complete(found)
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
        """As `bring_up`, for artifacts that are on the disk."""
        self._verifying += 1
        self._idle.clear()
        try:
            async with self.attempts.marked(version):
                return await self._prove(version, artifacts, slot)
        finally:
            self._verifying -= 1
            if not self._verifying:
                self._idle.set()

    async def _prove(self, version: Version, artifacts: Artifacts, slot: Slot) -> LoadedModel:
        await asyncio.to_thread(check_files, artifacts.folder.resolve())
        files = await model_files.read(artifacts.folder)
        await asyncio.to_thread(self._policy.check_model, artifacts.folder, files.mlmodel)
        needs = await asyncio.to_thread(environments.read, files)
        differing = await asyncio.to_thread(environments.differences, needs)
        if self._settings.environments:
            self._policy.check_requirements(files, needs)
        launcher = await self._launcher_of(needs, differing)
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
            warnings=[] if launcher.is_dedicated else _warnings(version, differing),
        )
        known = slot.last_live
        if known:
            self._refuse_breaking(known, input_changes(known.contract, loaded.contract), version)
        with self._explained(version, launcher, differing):
            await loaded.start()
        try:
            # What it returns is known only now.
            changes = breaking_changes(known.contract, loaded.contract) if known else []
            if known and changes:
                self._refuse_breaking(known, changes, version)
                loaded.forget_requests(self._settings.replayed)
            await loaded.replay(
                loaded.recorder.last(), reported(version.tags) or self._sharing.get(artifacts.digest)
            )
        except BaseException:
            loaded.close()
            raise
        self._sharing[artifacts.digest] = loaded.calls.sharing
        loaded.activate()
        return loaded

    async def _launcher_of(self, needs: Needs, differing: Sequence[Difference]) -> Launcher:
        if not (self._settings.environments and (differing or needs.fault)):
            return self._launcher
        return self._launcher.with_interpreter(await self._environments.interpreter(needs))

    @contextmanager
    def _explained(
        self, version: Version, launcher: Launcher, differing: Sequence[Difference]
    ) -> Iterator[None]:
        """Have a failure in the block name what is not installed as the version requires it."""
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

    def _refuse_breaking(self, known: LastLive, changes: Sequence[str], version: Version) -> None:
        if changes and not (
            self._settings.allow_breaking or version.tags.get("serving.allow_breaking") == "true"
        ):
            raise IncompatibleContract(
                f"it would break clients of {known.version}: {'; '.join(changes[:10])}. "
                "Set its tag serving.allow_breaking to true to let it go live all the same"
            )


def _warnings(version: Version, differing: Sequence[Difference]) -> list[str]:
    """Return a warning if a version goes live with other packages than it was logged with."""
    found = [each for each in differing if each.matters]
    if not found:
        return []
    return [
        f"{version} may answer otherwise: it requires {environments.describe(found)}: {environments.REMEDY}"
    ]
