"""Runs downloads of artifacts with limits: a download that stalls is abandoned, and does not delay others."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from serving.errors import RegistryUnavailable
from serving.registry import blocking_calls
from serving.registry.artifact_files import Usage, check_files
from serving.registry.download_progress import DownloadProgress
from serving.settings.groups import RegistrySettings

_MAX_CONCURRENT = 4
_CHECK_INTERVAL_SECONDS = 0.5
_MAX_IDLE_SECONDS = 3.0
"""A download that has received nothing for this time gives up its slot, so that another may start."""
_MAX_COUNTED_SECONDS = 30.0
"""The same applies to one that has run for this time, however much it receives."""
_MAX_ABANDONED = 3
"""Maximum of abandoned downloads of one location whose threads still run."""


class Downloads:
    """Runs a few downloads at once; those that stall do not count."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    async def run(
        self,
        location: str,
        folder: Path,
        call: Callable[[DownloadProgress], Path],
        subject: str = "the download",
    ) -> Path:
        """Run a download of `location` into `folder`; return the result of the call. Errors name the subject.

        The growth of the folder is progress, too: most of MLflow's clients report only complete files.

        Raises:
            UntrustedArtifact: it is larger than the settings allow, or contains more than files and folders.
            RegistryUnavailable: it stalls, or takes too long.
        """
        slot = _DownloadSlot(self._slots)
        await slot.acquire()
        try:
            with self._lock:
                if self._running[location] >= _MAX_ABANDONED:
                    raise RegistryUnavailable(f"{subject}: earlier abandoned downloads have not ended")
                self._running[location] += 1
            progress = DownloadProgress(self._settings.download_stall_seconds)
            future = self._start(location, partial(call, progress))
            try:
                await self._watch(future, folder, slot, progress, subject)
                return future.result()
            finally:
                future.cancel()
        finally:
            slot.release()

    def _start(self, location: str, call: Callable[[], Path]) -> asyncio.Future[Path]:
        def counted() -> Path:
            try:
                return call()
            finally:
                self._ended(location)

        try:
            return blocking_calls.start(counted, name="download")
        except blocking_calls.TooManyHang as error:
            self._ended(location)
            raise RegistryUnavailable(str(error)) from error

    def _ended(self, location: str) -> None:
        with self._lock:
            self._running[location] -= 1
            if not self._running[location]:
                del self._running[location]

    async def _watch(
        self,
        future: asyncio.Future[Path],
        folder: Path,
        slot: _DownloadSlot,
        progress: DownloadProgress,
        subject: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        started, usage = loop.time(), Usage()
        while True:
            done, _ = await asyncio.wait([future], timeout=_CHECK_INTERVAL_SECONDS)
            if done:
                return
            previous, usage = usage, await asyncio.to_thread(self._usage, folder)
            if usage.has_more_data(previous):
                progress.record()
            idle, seconds = progress.idle_seconds, loop.time() - started
            if progress.left <= 0:
                raise RegistryUnavailable(f"{subject}: nothing was received for {idle:.0f} s")
            if seconds > self._settings.download_seconds:
                raise RegistryUnavailable(f"{subject}: not complete after {seconds:.0f} s")
            if idle > _MAX_IDLE_SECONDS or seconds > _MAX_COUNTED_SECONDS:
                slot.release()

    def _usage(self, folder: Path) -> Usage:
        try:
            return check_files(folder.resolve(), self._settings.max_model_bytes)
        except FileNotFoundError:  # not started, or a file was renamed during the check
            return Usage()


class _DownloadSlot:
    """One of the slots for concurrent downloads; releasing it twice has no further effect."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots, self._is_held = slots, False

    async def acquire(self) -> None:
        await self._slots.acquire()
        self._is_held = True

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._slots.release()
