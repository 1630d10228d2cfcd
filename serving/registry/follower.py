"""Follows one reference: resolve ▸ start ▸ verify ▸ swap ▸ drain, one `tick()` at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from serving.errors import ProcessDied, RegistryError, RegistryUnavailable, Rejected, Unresolved
from serving.models.loaded_model import Loaded
from serving.models.probation import Tally
from serving.models.slot import Slot
from serving.registry.artifact_store import Store
from serving.registry.change_detector import Glance
from serving.registry.client import RegistryClient
from serving.registry.decisions import REFUSED, Candidate, State, Step, decide, pause, refused, rest
from serving.registry.fallback import LastGood
from serving.registry.gate import Gate
from serving.registry.history import History
from serving.registry.promotion_events import Chronicle
from serving.registry.rollback import Probation
from serving.registry.tag_writer import Herald
from serving.settings.groups import Following
from serving.tasks import Errands
from serving.telemetry.redaction import without_secrets
from serving.version import Outcome, Version

log = logging.getLogger("serving.follower")
_LONGEST_LOOK = 10.0
_SECONDS_BETWEEN_ALIASES = 5.0
_SECONDS_BETWEEN_VERDICTS = 0.5


class Follower:
    """Keeps one slot on the version that its reference names."""

    def __init__(
        self,
        slot: Slot,
        registry: RegistryClient,
        store: Store,
        gate: Gate,
        herald: Herald,
        history: History,
        settings: Following,
        *,
        shared: bool = False,
    ) -> None:
        self.slot, self.history = slot, history
        self.candidate: Candidate | None = None
        self._registry, self._store, self._gate = registry, store, gate
        self._herald, self._settings = herald, settings
        self._last_good = LastGood(slot, registry, store, gate)
        self._glance = Glance(registry, slot.reference, shared=shared)
        self._starting: asyncio.Task[None] | None = None
        self._errands = Errands()
        self._probation = Probation(slot, self._errands)
        self._chronicle = Chronicle(slot, herald, history, self._errands)
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
            seconds = rest(self._settings.poll_seconds, self._registry.waited, seconds)
            await self._rest(max(seconds, pause(self._misses, _LONGEST_LOOK) if self._misses else 0))

    async def _rest(self, seconds: float) -> None:
        """Wait for the next look, and judge and tell meanwhile: neither can wait that long."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not self._woken.is_set() and (left := ends - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _SECONDS_BETWEEN_VERDICTS)):
                    await self._woken.wait()
            self._judge()
            if self._herald.is_due:
                await self._herald.flush()

    def wake(self) -> None:
        """Tick now."""
        self._glance.forget()
        self._woken.set()

    async def tick(self) -> None:
        """Look at the live version and at the registry once, and start to follow what changed."""
        self._judge()
        settled = self.slot.live and not self.candidate
        if not settled:
            self._glance.forget()
        if not (self.slot.live and self.slot.reference.is_fixed) and await self._glance.shows_change(
            self._settings.poll_seconds
        ):
            await self._look()
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

    async def begin(self, number: str) -> None:
        """Bring up the version with this number, which other replicas serve, as far as that is possible."""
        if loaded := await self._last_good.numbered(number):
            self._swap(loaded, "it is live on other replicas", stands_in=True)

    async def fill(self) -> None:
        """Look once, and wait until a version is live, or the slot's reason says why none is.

        Where nothing can serve, the next call tries again.
        """
        await self._look()
        if self.candidate and self._is_idle:  # it was refused before
            await self._fall_back(self.candidate)
        await self.settled()
        self.candidate = self.candidate if self.slot.live else None

    async def empty(self, reason: str) -> None:
        """Have nothing live: what loads is dropped, what is live drains. Another tick begins anew.

        What was refused stays so.
        """
        self._drop()
        await self.settled()
        if self.candidate and self.candidate.state not in REFUSED:
            self.candidate = None
        self._glance.forget()
        self._herald.leave(self.slot.reference.uri)
        for loaded in self.slot.clear(reason):
            self._errands.start(loaded.drain())
        await self._errands.done()

    # -- what the registry says

    async def _look(self) -> None:
        try:
            found, rivals = await self._registry.resolve(self.slot.reference)
        except Unresolved as error:
            self._misses, self.slot.is_named = 0, False
            self._gate.attempts.named(self.slot.reference.uri, None)
            self._unresolved(str(error))
            return
        except RegistryUnavailable as error:
            self._misses += 1
            self._glance.forget()
            self._chronicle.says(f"the registry is away: {error}", self.candidate)
            self._recall()
            return
        self._misses, self.slot.is_named = 0, True
        self._gate.attempts.named(self.slot.reference.uri, found)
        self._chronicle.warn_of(rivals, found)
        live, warm = self.slot.live, self.slot.warm
        step = decide(
            found,
            live.version if live else None,
            warm.version if warm else None,
            self.candidate,
            asyncio.get_running_loop().time(),
        )
        self._take(step, found)
        if live and live.version.identity == found.identity:
            self._herald.remind(self.slot.reference.uri, found)
            await self._refresh(live, found)
        elif self.candidate and self.candidate.state is State.REJECTED:
            self._herald.repeat_refusal(found)

    async def _refresh(self, live: Loaded, found: Version) -> None:
        """Take over what has changed about the live version; its aliases take a call of their own."""
        now = asyncio.get_running_loop().time()
        if now < self._aliases_due:
            live.refresh(replace(found, aliases=live.version.aliases))
            return
        self._aliases_due = now + _SECONDS_BETWEEN_ALIASES
        with suppress(RegistryError):
            live.refresh(replace(found, aliases=await self._registry.aliases(found)))

    def _take(self, step: Step, found: Version) -> None:
        if step is Step.NOTHING:
            return
        self._drop()
        if step is Step.FORGET:
            self.candidate = None
        elif step is Step.RETURN and self.slot.warm:
            self.slot.warm.refresh(replace(found, aliases=self.slot.warm.version.aliases))
            self._swap(self.slot.warm, "it was promoted again while it was still warm")
        else:
            before = self.candidate
            again = before is not None and before.version.identity == found.identity
            failures = before.failures if before and again else 0
            self._note(Candidate(found, State.LOADING, f"{found} is loading", failures))
            self._starting = asyncio.create_task(self._bring_up(found, failures))

    def _unresolved(self, reason: str) -> None:
        self._drop()
        self.candidate = None
        self._chronicle.says(reason, None)
        if self.slot.live:
            self.slot.live.refresh(replace(self.slot.live.version, stage=None))
            self.slot.warnings = (f"{reason}: {self.slot.live.version} is served until another is promoted",)

    # -- bringing up

    async def _bring_up(self, found: Version, failures: int) -> None:
        """Bring up a version; one that was refused before, here or elsewhere, after what served instead."""
        try:
            before = None if self.slot.live else refused(found) or await self._last_good.suspected(found)
            if before:
                await self._fall_back(before)
            if before and before.state is State.REVERTED and self.slot.live:
                self._note(before)
            else:
                await self._try(found, failures)
            self.wake()
        except Exception:
            log.exception("%s could not be brought up", found, extra=found.in_logs)
            self.candidate = None  # the next look tries again

    async def _try(self, found: Version, failures: int) -> None:
        seconds: float | None = None
        try:
            loaded = await self._gate.bring_up(found, self.slot)
        except (RegistryError, ProcessDied) as error:
            failed = Candidate(found, State.WAITING, without_secrets(f"{found} waits: {error}"), failures + 1)
            seconds = pause(failures)
        except Rejected as error:
            failed = Candidate(found, State.REJECTED, without_secrets(str(error)), failures + 1)
            seconds = pause(failures + 3) if error.may_heal else None
        except Exception as error:
            log.exception("%s could not be brought up", found, extra=found.in_logs)
            reason = f"{type(error).__name__} in the serving front; see its log"
            failed = Candidate(found, State.REJECTED, reason, failures + 1)
        else:
            self._swap(loaded, str(loaded.comparison or ""))
            return
        await self._fall_back(failed)
        if failed.state is State.REJECTED:
            self._chronicle.tell(found, Outcome.REJECTED, failed.reason)
        now = asyncio.get_running_loop().time()
        self._note(failed if seconds is None else replace(failed, retry_at=now + seconds))

    async def _fall_back(self, failed: Candidate) -> None:
        """Where nothing is live, begin with what served last, as if it had been live all the time."""
        if self.slot.live:
            return
        self._chronicle.says(failed.told, failed)
        if loaded := await self._last_good.bring_up(failed.version):
            candidate = self.candidate
            self._swap(loaded, f"it served last, and {failed.told}", stands_in=True)
            self.candidate = candidate

    def _recall(self) -> None:
        """With nothing live, and nobody to ask: bring up the last known good version from the disk."""
        if not self.slot.live and self._is_idle:
            self._starting = asyncio.create_task(self._begin_from_disk())

    async def _begin_from_disk(self) -> None:
        if loaded := await self._last_good.kept():
            loaded.from_disk = self._misses > 0
            self._swap(loaded, "from the copy on disk, as the registry is away", stands_in=True)

    # -- what is live

    def _swap(self, new: Loaded, reason: str, *, stands_in: bool = False) -> None:
        old = self.slot.known
        retired = self.slot.swap(new, self._settings.probation_seconds)
        self.candidate = None
        new.tally = Tally()  # what failed on it in earlier days, where it had been live before, is past
        for loaded in retired:
            self._errands.start(loaded.drain())
        self._chronicle.live(new.version, old.version if old else None, reason, stands_in=stands_in)
        self._errands.start(self._store.remember(self.slot.reference.uri, new.version, new.artifacts))

    def _judge(self) -> None:
        """Go back to the old version where the new one fails; let the old one go when it does not."""
        if retired := self._probation.judge(self._revert):
            self._errands.start(retired.drain())

    def _revert(self, warm: Loaded, reason: str) -> None:
        """Go back to the version before."""
        assert self.slot.live is not None
        bad = self.slot.live.version
        log.error("%s is reverted: %s", bad, reason, extra=self.slot.in_logs)
        self._swap(warm, f"{bad} was reverted: {reason}")
        if self.slot.warm:
            self._errands.start(self.slot.warm.drain())
            self.slot.warm = None
        self.candidate = Candidate(bad, State.REVERTED, f"{bad} was reverted: {reason}")
        self._chronicle.tell(bad, Outcome.REVERTED, reason)
        self.wake()

    def _note(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._chronicle.says(candidate.told, candidate)

    def _drop(self) -> None:
        if self._starting:
            self._starting.cancel()
