"""Follows one reference: resolve ▸ start ▸ verify ▸ swap ▸ drain, one `tick()` at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from serving.errors import ProcessDied, ReferenceNotFound, RegistryError, RegistryUnavailable
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.promotion_errors import PromotionWaits, Rejected
from serving.registry import decisions
from serving.registry.artifact_store import ArtifactStore
from serving.registry.change_detector import ChangeDetector
from serving.registry.client import RegistryClient
from serving.registry.decisions import REFUSED, Action, Candidate, CandidatePhase
from serving.registry.fallback import Fallback
from serving.registry.gate import Gate
from serving.registry.history import History
from serving.registry.promotion_events import PromotionEvent, PromotionEvents
from serving.registry.rollback import ProbationMonitor
from serving.registry.tag_writer import TagWriter
from serving.settings.groups import PromotionSettings
from serving.tasks import BackgroundTasks
from serving.version import Outcome, Version

log = logging.getLogger("serving.follower")
_MAX_POLL_SECONDS = 10.0
_ALIAS_POLL_SECONDS = 5.0
_PROBATION_CHECK_SECONDS = 0.5
_RETURNED = "it was promoted again while it was still warm"


class Follower:
    """Keeps one slot at the version that its reference names."""

    def __init__(
        self,
        slot: Slot,
        registry: RegistryClient,
        store: ArtifactStore,
        gate: Gate,
        tag_writer: TagWriter,
        history: History,
        settings: PromotionSettings,
        *,
        shared: bool = False,
    ) -> None:
        self.slot, self.history = slot, history
        self.candidate: Candidate | None = None
        self._registry, self._store, self._gate = registry, store, gate
        self._tag_writer, self._settings = tag_writer, settings
        self._fallback = Fallback(slot, registry, store, gate)
        self._change_detector = ChangeDetector(registry, slot.reference, shared=shared)
        self._start_task: asyncio.Task[None] | None = None
        self._tasks = BackgroundTasks()
        self._probation = ProbationMonitor(slot, self._tasks)
        self._events = PromotionEvents(slot, tag_writer, history, self._tasks)
        self._wake_up = asyncio.Event()
        self._failed_polls = 0
        self._aliases_due = 0.0

    # -- the loop

    async def run(self) -> None:
        """Tick until cancelled."""
        seconds = 0.0
        while True:
            self._wake_up.clear()
            try:
                await self.tick()
            except Exception:  # an error in this module must not end the loop
                log.exception("unhandled error while polling the registry", extra=self.slot.in_logs)
            latency, failures = self._registry.last_latency, self._failed_polls
            seconds = decisions.next_poll_delay(self._settings.poll_seconds, latency, seconds)
            pause = decisions.retry_delay(failures, _MAX_POLL_SECONDS) if failures else 0
            await self._wait(max(seconds, pause))

    async def _wait(self, seconds: float) -> None:
        """Wait for the next poll; check the probation and write tags meanwhile, more often."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not self._wake_up.is_set() and (left := ends - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _PROBATION_CHECK_SECONDS)):
                    await self._wake_up.wait()
            self.check_probation()
            if self._tag_writer.is_due:
                await self._tag_writer.flush()

    def wake(self) -> None:
        """Tick now."""
        self._change_detector.reset()
        self._wake_up.set()

    def retry(self) -> None:
        """Try the candidate again now, as something has changed that its tags do not show."""
        self.candidate = decisions.due_now(self.candidate)
        self.wake()

    async def tick(self) -> None:
        """Check the live version, poll the registry once, and start what its changes require."""
        self.check_probation()
        if not self.slot.live or self.candidate:
            self._change_detector.reset()
        is_final = self.slot.live and self.slot.reference.is_fixed
        if not is_final and await self._change_detector.has_changed(self._settings.poll_seconds):
            await self._poll()
        if self.slot.live:
            self._events.report_condition(self.slot.live)
        await self._tag_writer.flush()
        self.slot.set_tag_warning(self._tag_writer.failures.warning(self.slot.reference.name))

    @property
    def _is_idle(self) -> bool:
        """Return whether no version is being started."""
        return self._start_task is None or self._start_task.done()

    async def settled(self) -> None:
        """Wait until the version that was resolved last is live or refused."""
        if self._start_task:
            await asyncio.gather(self._start_task, return_exceptions=True)

    async def adopt(self, number: str) -> None:
        """Start with the version of this number, which other instances serve, if it can serve here."""
        if loaded := await self._fallback.by_number(number):
            self._swap(loaded, "it is live on other instances", stands_in=True)

    async def load(self) -> None:
        """Poll once, and wait until a version is live or the slot's reason states why none is."""
        await self._poll()
        if self.candidate and self._is_idle:  # it was refused before
            await self._fall_back(self.candidate)
        await self.settled()
        self.candidate = self.candidate if self.slot.live else None

    async def unload(self, reason: str) -> None:
        """Cancel a start that is under way and drain what is live, so that the next tick starts over.

        A refused candidate stays refused.
        """
        self._cancel_start()
        await self.settled()
        if self.candidate and self.candidate.state not in REFUSED:
            self.candidate = None
        self._change_detector.reset()
        self._tag_writer.mark_unloaded(self.slot.reference.uri)
        for loaded in self.slot.clear(reason):
            self._tasks.spawn(loaded.drain())
        await self._tasks.join()

    # -- polling

    async def _poll(self) -> None:
        try:
            resolved, rivals = await self._registry.resolve(self.slot.reference)
        except ReferenceNotFound as error:
            self._failed_polls = 0
            self.slot.set_resolved(False)
            self._gate.attempts.record_resolved(self.slot.reference.uri, None)
            self._handle_unresolved(str(error))
            return
        except RegistryUnavailable as error:
            self._failed_polls += 1
            self._change_detector.reset()
            self._events.set_reason(f"{error.summary()}: {error}", self.candidate, error.detail)
            self._begin_start_from_disk()
            return
        self._failed_polls = 0
        self.slot.set_resolved(True)
        self._gate.attempts.record_resolved(self.slot.reference.uri, resolved)
        self._events.report_stage_conflict(rivals, resolved)
        live = self.slot.live
        now = asyncio.get_running_loop().time()
        action = decisions.decide(resolved, live.version if live else None, self.candidate, now)
        self._apply(action, resolved)
        if live and live.version.identity == resolved.identity:
            self._tag_writer.reassert(self.slot.reference.uri, resolved)
            await self._refresh(live, resolved)
        elif self.candidate and self.candidate.state is CandidatePhase.REJECTED:
            self._tag_writer.repeat_refusal(resolved)

    async def _refresh(self, live: LoadedModel, resolved: Version) -> None:
        """Update the live version's tags and stage, and its aliases, which cost an extra call, less often."""
        now, aliases = asyncio.get_running_loop().time(), live.version.aliases
        if now >= self._aliases_due:
            self._aliases_due = now + _ALIAS_POLL_SECONDS
            with suppress(RegistryError):
                aliases = await self._registry.aliases(resolved)
        has_changed = live.version.user_tags != resolved.user_tags
        live.refresh(replace(resolved, aliases=aliases))
        if has_changed and self.slot.live is live:  # a start without the registry relies on the tags
            self._save(live)

    def _apply(self, action: Action, resolved: Version) -> None:
        if action is Action.NOTHING:
            return
        self._cancel_start()
        if action is Action.FORGET:
            self.candidate = None
        else:
            previous = self.candidate
            failures = previous.failures if previous and previous.version.identity == resolved.identity else 0
            loading = Candidate(resolved, CandidatePhase.LOADING, f"{resolved} is loading", failures)
            self._set_candidate(loading)
            self._start_task = asyncio.create_task(self._start(resolved, failures))

    def _handle_unresolved(self, reason: str) -> None:
        self._cancel_start()
        self.candidate = None
        self._events.set_reason(reason)
        if live := self.slot.live:
            live.refresh(replace(live.version, stage=None))
            self.slot.set_warnings(f"{reason}: {live.version} is served until another version is promoted")

    # -- starting a version

    async def _start(self, version: Version, failures: int) -> None:
        """Start a version.

        A version that was refused before, here or on another front, is started after the one that served
        instead: it is verified against that one's contract.
        """
        try:
            earlier = None
            if not self.slot.live:
                earlier = decisions.refused(version) or await self._fallback.suspected(version)
            if earlier:
                await self._fall_back(earlier)
            if earlier and earlier.state is CandidatePhase.REVERTED and self.slot.live:
                self._set_candidate(earlier)
            else:
                await self._try(version, failures)
            self.wake()
        except Exception:
            log.exception("unhandled error while starting %s", version, extra=version.in_logs)
            self.candidate = None  # the next poll tries again

    async def _try(self, version: Version, failures: int) -> None:
        try:
            loaded = await self._gate.load_and_verify(version, self.slot)
        except Exception as error:
            if not isinstance(error, (RegistryError, ProcessDied, PromotionWaits, Rejected)):
                log.exception("unhandled error while starting %s", version, extra=version.in_logs)
            failed, seconds = decisions.failed_candidate(version, error, failures)
        else:
            is_warm = loaded is self.slot.warm
            self._swap(loaded, _RETURNED if is_warm else loaded.live_reason)
            return
        await self._fall_back(failed)
        if failed.outcome:
            self._events.publish(PromotionEvent(version, failed.outcome, failed.reason))
        # The delay starts after the fallback, which may have taken long to load.
        retry_at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._set_candidate(replace(failed, retry_at=retry_at))

    async def _fall_back(self, failed: Candidate) -> None:
        """If nothing is live, start with the version that served last, as if it had always been live."""
        if self.slot.live:
            return
        self._events.set_reason(failed.status, failed)
        if loaded := await self._fallback.load(failed.version):
            candidate = self.candidate
            self._swap(loaded, f"it served last, and {failed.status}", stands_in=True)
            self.candidate = candidate

    def _begin_start_from_disk(self) -> None:
        if not self.slot.live and self._is_idle:
            self._start_task = asyncio.create_task(self._start_from_disk())

    async def _start_from_disk(self) -> None:
        if loaded := await self._fallback.from_disk():
            if self._failed_polls:
                loaded.mark_from_disk()
            self._swap(loaded, "from the copy on disk, as the registry can't be used", stands_in=True)

    # -- the live version

    def _swap(self, new: LoadedModel, reason: str, *, stands_in: bool = False) -> None:
        old = self.slot.last_live
        retired = self.slot.swap(new, self._settings.probation_seconds)
        self.candidate = None
        new.reset_counts()
        for loaded in retired:
            self._tasks.spawn(loaded.drain())
        self._events.publish(PromotionEvent(new.version, Outcome.LIVE, reason, stands_in))
        if old and old.version.identity != new.version.identity:
            self._events.publish(PromotionEvent(old.version, Outcome.SUPERSEDED, f"{new.version} went live"))
        self._save(new)

    def _save(self, live: LoadedModel) -> None:
        self._tasks.spawn(self._store.save_last_live(self.slot.reference.uri, live.version, live.artifacts))

    def check_probation(self) -> None:
        """Return to the previous version if the new one fails; drain it once the probation has ended."""
        if retired := self._probation.check(self._revert):
            self._tasks.spawn(retired.drain())

    def _revert(self, warm: LoadedModel, reason: str) -> None:
        """Return to the previous version."""
        assert self.slot.live is not None
        event = PromotionEvent(self.slot.live.version, Outcome.REVERTED, reason)
        self._swap(warm, event.sentence)
        if bad := self.slot.release_warm():
            self._tasks.spawn(bad.drain())
        self.candidate = Candidate(event.version, CandidatePhase.REVERTED, event.sentence)
        self._events.publish(event)
        self.wake()

    def _set_candidate(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._events.set_reason(candidate.status, candidate)

    def _cancel_start(self) -> None:
        if self._start_task:
            self._start_task.cancel()
