"""Downloads of artifacts, each watched: one that stalls ends, and keeps no other waiting."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from serving.errors import RegistryUnavailable
from serving.registry import blocking_calls
from serving.registry.artifact_files import Usage, check_files
from serving.settings.groups import RegistrySettings

_AT_ONCE = 4
_SECONDS_BETWEEN_LOOKS = 0.5
_PATIENCE_SECONDS = 3.0
"""A download that has received nothing for so long gives its place to another."""
_MAX_SECONDS_IN_PLACE = 30.0
"""So does one that has run for so long, however much it receives."""
_MAX_HANGING = 3
"""Downloads of one location that were given up and whose threads still run."""


class Downloads:
    """Runs a few downloads at once; those that stall do not count."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    async def run(self, location: str, folder: Path, call: Callable[[], Path]) -> Path:
        """Run a download of `location` into `folder`; return what the call does.

        Raises:
            Untrusted: it is more than the settings allow, or holds what is no file.
            RegistryUnavailable: it stalls, or takes too long.
        """
        place = _Place(self._places)
        await place.take()
        try:
            with self._lock:
                if self._running[location] >= _MAX_HANGING:
                    raise RegistryUnavailable("earlier downloads of it that were given up have not ended")
                self._running[location] += 1
            future = self._start(location, call)
            try:
                await self._watch(future, folder, place)
                return future.result()
            finally:
                future.cancel()
        finally:
            place.give_back()

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

    async def _watch(self, future: asyncio.Future[Path], folder: Path, place: _Place) -> None:
        loop = asyncio.get_running_loop()
        began = progressed = loop.time()
        usage = Usage()
        while True:
            done, _ = await asyncio.wait([future], timeout=_SECONDS_BETWEEN_LOOKS)
            if done:
                return
            found = await asyncio.to_thread(self._usage, folder)
            now = loop.time()
            if found != usage:
                usage, progressed = found, now
            if now - progressed > self._settings.download_stall_seconds:
                raise RegistryUnavailable(f"nothing was received for {now - progressed:.0f} s")
            if now - began > self._settings.download_seconds:
                raise RegistryUnavailable(f"the download was not complete after {now - began:.0f} s")
            if now - progressed > _PATIENCE_SECONDS or now - began > _MAX_SECONDS_IN_PLACE:
                place.give_back()

    def _usage(self, folder: Path) -> Usage:
        try:
            return check_files(folder.resolve(), self._settings.max_model_bytes)
        except FileNotFoundError:  # not begun, or a file was renamed during the look
            return Usage()


class _Place:
    """One of the places for downloads, given back once."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places, self._is_held = places, False

    async def take(self) -> None:
        await self._places.acquire()
        self._is_held = True

    def give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._places.release()
