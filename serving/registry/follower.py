"""Follows one reference: resolve ▸ start ▸ verify ▸ swap, one `tick()` at a time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum

from serving.errors import RegistryError, RegistryUnavailable, Rejected, Unresolved
from serving.registry.client import RegistryClient
from serving.registry.store import Store
from serving.runtime.launcher import Launcher
from serving.runtime.loaded import Loaded
from serving.runtime.slot import Slot
from serving.runtime.version import Version
from serving.settings import Limits, Runtime

log = logging.getLogger("serving.follower")
_LONGEST_PAUSE = 30.0


class State(Enum):
    """Where a version stands that is to go live."""

    LOADING = "loading"
    WAITING = "waiting"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version that the reference names while it is not live, and why it is not."""

    version: Version
    state: State
    reason: str = ""
    failures: int = 0
    retry_at: float = 0.0


class Step(Enum):
    """What a tick does about the version that it found."""

    NOTHING = "nothing"
    START = "start"
    FORGET = "forget"


def decide(found: Version, live: Version | None, candidate: Candidate | None, now: float) -> Step:
    """What to do about the version that the reference names now."""
    if live and live.identity == found.identity:
        return Step.FORGET if candidate else Step.NOTHING
    if candidate is None or candidate.version.identity != found.identity:
        return Step.START
    if candidate.state is State.WAITING and now >= candidate.retry_at:
        return Step.START
    # What can't serve is not tried again until a person changes something about it.
    if candidate.state is State.REJECTED and candidate.version.tags != found.tags:
        return Step.START
    return Step.NOTHING


def pause(failures: int) -> float:
    """Seconds until something that may heal is tried again."""
    return min(_LONGEST_PAUSE, 0.5 * 2.0**failures)


class Follower:
    """Keeps one slot on the version that its reference names."""

    def __init__(
        self,
        slot: Slot,
        registry: RegistryClient,
        store: Store,
        launcher: Launcher,
        limits: Limits,
        runtime: Runtime,
    ) -> None:
        self.slot = slot
        self.candidate: Candidate | None = None
        self._registry, self._store, self._launcher = registry, store, launcher
        self._limits, self._runtime = limits, runtime
        self._starting: asyncio.Task[None] | None = None
        self._draining: set[asyncio.Task[None]] = set()

    async def run(self, poll_seconds: float) -> None:
        """Tick until cancelled; a fixed version is not asked for again once it is live."""
        while not (self.slot.live and self.slot.reference.is_fixed):
            try:
                await self.tick()
            except Exception:  # a mistake in here must not end the following
                log.exception("%s: a look at the registry failed", self.slot.reference)
            await asyncio.sleep(poll_seconds)

    async def tick(self) -> None:
        """Look at the registry once, and start to follow what changed."""
        try:
            found = await self._registry.resolve(self.slot.reference)
        except Unresolved as error:
            self._tell(str(error))
            return
        except RegistryUnavailable as error:
            self._tell(f"the registry is away: {error}")
            return
        live = self.slot.live.version if self.slot.live else None
        step = decide(found, live, self.candidate, asyncio.get_running_loop().time())
        if step is Step.NOTHING:
            return
        self._drop()
        if step is Step.FORGET:
            self.candidate = None
            return
        before = self.candidate
        again = before is not None and before.version.identity == found.identity
        failures = before.failures if before and again else 0
        self._note(Candidate(found, State.LOADING, f"{found} is loading", failures))
        self._starting = asyncio.create_task(self._bring_up(found, failures))

    async def settled(self) -> None:
        """Wait until the version that was found last is live or refused."""
        if self._starting:
            await asyncio.gather(self._starting, return_exceptions=True)

    async def aclose(self) -> None:
        """Stop following: what loads is dropped, what is live drains."""
        self._drop()
        if live := self.slot.live:
            await live.drain()
        await asyncio.gather(*self._draining, return_exceptions=True)

    async def _bring_up(self, found: Version, failures: int) -> None:
        try:
            loaded = await self._load(found)
        except Rejected as error:
            self._note(Candidate(found, State.REJECTED, f"{found} is refused: {error}"))
        except RegistryError as error:
            again = asyncio.get_running_loop().time() + pause(failures)
            self._note(Candidate(found, State.WAITING, str(error), failures + 1, again))
        except Exception as error:
            log.exception("%s could not be brought up", found)
            reason = f"{found} is refused: {type(error).__name__} in the serving front; see its log"
            self._note(Candidate(found, State.REJECTED, reason))
        else:
            self._swap(loaded)

    async def _load(self, found: Version) -> Loaded:
        version = await self._registry.complete(found)
        artifacts = await self._store.fetch(version, self._registry.download)
        loaded = await asyncio.to_thread(
            Loaded, version, artifacts, self._launcher, self._limits, self._runtime
        )
        await loaded.start()
        return loaded

    def _swap(self, loaded: Loaded) -> None:
        old = self.slot.swap(loaded)
        self.candidate = None
        log.info("%s is live as %s", loaded.version, self.slot.reference)
        if old:
            draining = asyncio.create_task(old.drain())
            self._draining.add(draining)
            draining.add_done_callback(self._draining.discard)

    def _drop(self) -> None:
        if self._starting and not self._starting.done():
            self._starting.cancel()

    def _note(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._tell(candidate.reason)

    def _tell(self, reason: str) -> None:
        if reason != self.slot.reason:
            self.slot.reason = reason
            log.log(_level(self.candidate), "%s: %s", self.slot.reference, reason)


def _level(candidate: Candidate | None) -> int:
    return logging.INFO if candidate and candidate.state is State.LOADING else logging.WARNING
