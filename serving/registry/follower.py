"""Follows one reference: resolve ▸ start ▸ verify ▸ swap ▸ drain, one `tick()` at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from serving.errors import ProcessDied, ReferenceNotFound, RegistryError, RegistryUnavailable, Rejected
from serving.models.loaded_model import LoadedModel
from serving.models.probation import RequestCounts
from serving.models.slot import Slot
from serving.registry.artifact_store import ArtifactStore
from serving.registry.change_detector import ChangeDetector
from serving.registry.client import RegistryClient
from serving.registry.decisions import (
    REFUSED,
    Action,
    Candidate,
    CandidatePhase,
    decide,
    next_poll_delay,
    refused,
    retry_delay,
)
from serving.registry.fallback import Fallback
from serving.registry.gate import Gate
from serving.registry.history import History
from serving.registry.promotion_events import PromotionEvents
from serving.registry.rollback import ProbationMonitor
from serving.registry.tag_writer import TagWriter
from serving.settings.groups import PromotionSettings
from serving.tasks import BackgroundTasks
from serving.telemetry.redaction import redact
from serving.version import Outcome, Version

log = logging.getLogger("serving.follower")
_MAX_POLL_SECONDS = 10.0
_SECONDS_BETWEEN_ALIASES = 5.0
_SECONDS_BETWEEN_VERDICTS = 0.5


class Follower:
    """Keeps one slot on the version that its reference names."""

    def __init__(
        self,
        slot: Slot,
        registry: RegistryClient,
        store: ArtifactStore,
        gate: Gate,
        herald: TagWriter,
        history: History,
        settings: PromotionSettings,
        *,
        shared: bool = False,
    ) -> None:
        self.slot, self.history = slot, history
        self.candidate: Candidate | None = None
        self._registry, self._store, self._gate = registry, store, gate
        self._herald, self._settings = herald, settings
        self._last_good = Fallback(slot, registry, store, gate)
        self._glance = ChangeDetector(registry, slot.reference, shared=shared)
        self._starting: asyncio.Task[None] | None = None
        self._errands = BackgroundTasks()
        self._probation = ProbationMonitor(slot, self._errands)
        self._chronicle = PromotionEvents(slot, herald, history, self._errands)
        self._woken = asyncio.Event()
        self._misses = 0
        self._aliases_due = 0.0

    # -- the loop

    async def run(self) -> None:
        """Tick until cancelled."""
        seconds = 0.0
        while True:
            self._woken.clear()
            try:
                await self.tick()
            except Exception:  # a mistake in here must not end the following
                log.exception("a look at the registry failed", extra=self.slot.in_logs)
            seconds = next_poll_delay(self._settings.poll_seconds, self._registry.waited, seconds)
            await self._rest(
                max(seconds, retry_delay(self._misses, _MAX_POLL_SECONDS) if self._misses else 0)
            )

    async def _rest(self, seconds: float) -> None:
        """Wait for the next look, and judge and tell meanwhile: neither can wait that long."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not self._woken.is_set() and (left := ends - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _SECONDS_BETWEEN_VERDICTS)):
                    await self._woken.wait()
            self.check_probation()
            if self._herald.is_due:
                await self._herald.flush()

    def wake(self) -> None:
        """Tick now."""
        self._glance.forget()
        self._woken.set()

    async def tick(self) -> None:
        """Look at the live version and at the registry once, and start to follow what changed."""
        self.check_probation()
        settled = self.slot.live and not self.candidate
        if not settled:
            self._glance.forget()
        if not (self.slot.live and self.slot.reference.is_fixed) and await self._glance.has_changed(
            self._settings.poll_seconds
        ):
            await self._poll()
        if self.slot.live:
            self._chronicle.condition(self.slot.live)
        await self._herald.flush()

    @property
    def _is_idle(self) -> bool:
        """Whether nothing is being brought up."""
        return self._starting is None or self._starting.done()

    async def settled(self) -> None:
        """Wait until the version that was found last is live or refused."""
        if self._starting:
            await asyncio.gather(self._starting, return_exceptions=True)

    async def adopt(self, number: str) -> None:
        """Bring up the version with this number, which other replicas serve, as far as that is possible."""
        if loaded := await self._last_good.by_number(number):
            self._swap(loaded, "it is live on other replicas", stands_in=True)

    async def load(self) -> None:
        """Look once, and wait until a version is live, or the slot's reason says why none is.

        Where nothing can serve, the next call tries again.
        """
        await self._poll()
        if self.candidate and self._is_idle:  # it was refused before
            await self._fall_back(self.candidate)
        await self.settled()
        self.candidate = self.candidate if self.slot.live else None

    async def unload(self, reason: str) -> None:
        """Have nothing live: what loads is dropped, what is live drains. Another tick begins anew.

        What was refused stays so.
        """
        self._cancel_start()
        await self.settled()
        if self.candidate and self.candidate.state not in REFUSED:
            self.candidate = None
        self._glance.forget()
        self._herald.mark_superseded(self.slot.reference.uri)
        for loaded in self.slot.clear(reason):
            self._errands.spawn(loaded.drain())
        await self._errands.join()

    # -- what the registry says

    async def _poll(self) -> None:
        try:
            found, rivals = await self._registry.resolve(self.slot.reference)
        except ReferenceNotFound as error:
            self._misses, self.slot.is_resolved = 0, False
            self._gate.attempts.named(self.slot.reference.uri, None)
            self._unresolved(str(error))
            return
        except RegistryUnavailable as error:
            self._misses += 1
            self._glance.forget()
            self._chronicle.set_reason(f"the registry is away: {error}", self.candidate)
            self._recall()
            return
        self._misses, self.slot.is_resolved = 0, True
        self._gate.attempts.named(self.slot.reference.uri, found)
        self._chronicle.add_warning(rivals, found)
        live, warm = self.slot.live, self.slot.warm
        step = decide(
            found,
            live.version if live else None,
            warm.version if warm else None,
            self.candidate,
            asyncio.get_running_loop().time(),
        )
        self._apply(step, found)
        if live and live.version.identity == found.identity:
            self._herald.reassert(self.slot.reference.uri, found)
            await self._refresh(live, found)
        elif self.candidate and self.candidate.state is CandidatePhase.REJECTED:
            self._herald.repeat_refusal(found)

    async def _refresh(self, live: LoadedModel, found: Version) -> None:
        """Take over what has changed about the live version; its aliases take a call of their own."""
        now = asyncio.get_running_loop().time()
        if now < self._aliases_due:
            live.refresh(replace(found, aliases=live.version.aliases))
            return
        self._aliases_due = now + _SECONDS_BETWEEN_ALIASES
        with suppress(RegistryError):
            live.refresh(replace(found, aliases=await self._registry.aliases(found)))

    def _apply(self, step: Action, found: Version) -> None:
        if step is Action.NOTHING:
            return
        self._cancel_start()
        if step is Action.FORGET:
            self.candidate = None
        elif step is Action.RETURN and self.slot.warm:
            self.slot.warm.refresh(replace(found, aliases=self.slot.warm.version.aliases))
            self._swap(self.slot.warm, "it was promoted again while it was still warm")
        else:
            before = self.candidate
            again = before is not None and before.version.identity == found.identity
            failures = before.failures if before and again else 0
            self._set_candidate(Candidate(found, CandidatePhase.LOADING, f"{found} is loading", failures))
            self._starting = asyncio.create_task(self._start(found, failures))

    def _unresolved(self, reason: str) -> None:
        self._cancel_start()
        self.candidate = None
        self._chronicle.set_reason(reason, None)
        if self.slot.live:
            self.slot.live.refresh(replace(self.slot.live.version, stage=None))
            self.slot.warnings = (f"{reason}: {self.slot.live.version} is served until another is promoted",)

    # -- bringing up

    async def _start(self, found: Version, failures: int) -> None:
        """Bring up a version; one that was refused before, here or elsewhere, after what served instead."""
        try:
            before = None if self.slot.live else refused(found) or await self._last_good.suspected(found)
            if before:
                await self._fall_back(before)
            if before and before.state is CandidatePhase.REVERTED and self.slot.live:
                self._set_candidate(before)
            else:
                await self._try(found, failures)
            self.wake()
        except Exception:
            log.exception("%s could not be brought up", found, extra=found.in_logs)
            self.candidate = None  # the next look tries again

    async def _try(self, found: Version, failures: int) -> None:
        seconds: float | None = None
        try:
            loaded = await self._gate.load_and_verify(found, self.slot)
        except (RegistryError, ProcessDied) as error:
            failed = Candidate(found, CandidatePhase.WAITING, redact(f"{found} waits: {error}"), failures + 1)
            seconds = retry_delay(failures)
        except Rejected as error:
            failed = Candidate(found, CandidatePhase.REJECTED, redact(str(error)), failures + 1)
            seconds = retry_delay(failures + 3) if error.may_heal else None
        except Exception as error:
            log.exception("%s could not be brought up", found, extra=found.in_logs)
            reason = f"{type(error).__name__} in the serving front; see its log"
            failed = Candidate(found, CandidatePhase.REJECTED, reason, failures + 1)
        else:
            self._swap(loaded, str(loaded.comparison or ""))
            return
        await self._fall_back(failed)
        if failed.state is CandidatePhase.REJECTED:
            self._chronicle.publish(found, Outcome.REJECTED, failed.reason)
        now = asyncio.get_running_loop().time()
        self._set_candidate(failed if seconds is None else replace(failed, retry_at=now + seconds))

    async def _fall_back(self, failed: Candidate) -> None:
        """Where nothing is live, begin with what served last, as if it had been live all the time."""
        if self.slot.live:
            return
        self._chronicle.set_reason(failed.told, failed)
        if loaded := await self._last_good.bring_up(failed.version):
            candidate = self.candidate
            self._swap(loaded, f"it served last, and {failed.told}", stands_in=True)
            self.candidate = candidate

    def _recall(self) -> None:
        """With nothing live, and nobody to ask: bring up the last known good version from the disk."""
        if not self.slot.live and self._is_idle:
            self._starting = asyncio.create_task(self._start_from_disk())

    async def _start_from_disk(self) -> None:
        if loaded := await self._last_good.from_disk():
            loaded.from_disk = self._misses > 0
            self._swap(loaded, "from the copy on disk, as the registry is away", stands_in=True)

    # -- what is live

    def _swap(self, new: LoadedModel, reason: str, *, stands_in: bool = False) -> None:
        old = self.slot.last_live
        retired = self.slot.swap(new, self._settings.probation_seconds)
        self.candidate = None
        new.request_counts = (
            RequestCounts()
        )  # what failed on it in earlier days, where it had been live before, is past
        for loaded in retired:
            self._errands.spawn(loaded.drain())
        self._chronicle.live(new.version, old.version if old else None, reason, stands_in=stands_in)
        self._errands.spawn(self._store.save_last_live(self.slot.reference.uri, new.version, new.artifacts))

    def check_probation(self) -> None:
        """Go back to the old version where the new one fails; let the old one go when it does not."""
        if retired := self._probation.judge(self._revert):
            self._errands.spawn(retired.drain())

    def _revert(self, warm: LoadedModel, reason: str) -> None:
        """Go back to the version before."""
        assert self.slot.live is not None
        bad = self.slot.live.version
        log.error("%s is reverted: %s", bad, reason, extra=self.slot.in_logs)
        self._swap(warm, f"{bad} was reverted: {reason}")
        if self.slot.warm:
            self._errands.spawn(self.slot.warm.drain())
            self.slot.warm = None
        self.candidate = Candidate(bad, CandidatePhase.REVERTED, f"{bad} was reverted: {reason}")
        self._chronicle.publish(bad, Outcome.REVERTED, reason)
        self.wake()

    def _set_candidate(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._chronicle.set_reason(candidate.told, candidate)

    def _cancel_start(self) -> None:
        if self._starting:
            self._starting.cancel()
