"""Records on disk which versions are under verification, so that one that kills fronts is not tried first.

A marker is written, and forced to the disk, before anything of a version is read, and removed afterwards. The
front holds a lock on its markers. A marker without a lock was left by a front that died. The first death
delays the version: others go live before it. The second one in a row rejects it until a person promotes it
again or changes a tag. A death need not be the version's fault (a machine that fails, an operator's
`kill -9`), so one alone does not reject it, and a version that has served before is never rejected for this.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from serving.registry.artifact_store import atomic_write
from serving.version import Version

log = logging.getLogger("serving.store")
MAX_DEATHS = 2
_MAX_RECORD_BYTES = 2**20


class LoadAttempts:
    """Keeps the markers in `folder`; several fronts may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._resolved: dict[str, tuple[str, str | None, str] | None] = {}

    def deaths(self, version: Version) -> int:
        """Return how many fronts in a row died while they verified the version, as it is promoted now."""
        try:
            self._collect(version)
            record = _read(self._record(version))
        except OSError as error:
            log.warning("cannot read which versions were under verification: %s", error)
            return 0
        deaths = record.get("deaths") if record.get("promotion") == _promotion(version) else 0
        return deaths if isinstance(deaths, int) else 0

    def forget(self, version: Version) -> None:
        """Delete the count of deaths: the version passed, or a person requested another attempt."""
        with suppress(OSError):
            self._record(version).unlink(missing_ok=True)

    def record_resolved(self, reference: str, version: Version | None) -> None:
        """Record which version a reference names now; if it is a different one, a person has promoted it."""
        if version and reference in self._resolved and self._resolved[reference] != version.identity:
            self.forget(version)
        self._resolved[reference] = version.identity if version else None

    @asynccontextmanager
    async def mark(self, version: Version) -> AsyncIterator[None]:
        """Keep a marker of the version on disk while the block runs.

        A marker that cannot be written does not prevent the verification.
        """
        marker = _Marker(self._folder / f"{_key(version)}-{secrets.token_hex(8)}.json")
        try:
            try:
                await asyncio.to_thread(marker.write, json.dumps({"promotion": _promotion(version)}))
            except OSError as error:
                message = "%s is verified without a marker on disk: %s"
                log.warning(message, version, error, extra=version.in_logs)
            yield
        except asyncio.CancelledError:  # the front stops, or another version was promoted
            raise
        except BaseException:
            self.forget(version)
            raise
        else:
            self.forget(version)
        finally:
            marker.remove()

    def _collect(self, version: Version) -> None:
        """Count the markers that dead fronts have left in the record of the version."""
        for marker in self._folder.glob(f"{_key(version)}-*.json"):
            with suppress(OSError), marker.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # another front is verifying it now
                if not marker.exists():
                    continue  # another front has counted it
                promotion, record = _read(marker).get("promotion"), _read(self._record(version))
                earlier = record.get("deaths", 0) if record.get("promotion") == promotion else 0
                deaths = earlier + 1 if isinstance(earlier, int) else 1
                atomic_write(self._record(version), json.dumps({"deaths": deaths, "promotion": promotion}))
                marker.unlink()

    def _record(self, version: Version) -> Path:
        return self._folder / f"{_key(version)}.deaths"


class _Marker:
    """A file that is locked before it gets its name, until it is removed."""

    def __init__(self, file: Path) -> None:
        self._file, self._handle = file, -1
        self._lock, self._is_removed = threading.Lock(), False

    def write(self, text: str) -> None:
        with self._lock:
            if self._is_removed:
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new = self._file.with_suffix(".new")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._handle = os.open(new, flags, 0o600)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(self._handle, text.encode())
                os.fsync(self._handle)
                new.replace(self._file)
                _sync_folder(self._file.parent)
            except OSError:
                new.unlink(missing_ok=True)
                raise

    def remove(self) -> None:
        with self._lock:
            self._is_removed = True
            if self._handle >= 0:
                with suppress(OSError):
                    self._file.unlink(missing_ok=True)
                os.close(self._handle)


def _key(version: Version) -> str:
    return hashlib.sha256(repr(version.identity).encode()).hexdigest()[:16]


def _promotion(version: Version) -> str:
    """Return a hash that changes when a person changes a version's tags or its stage."""
    inputs = [version.stage, sorted(version.user_tags.items())]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            record = json.loads(opened.read(_MAX_RECORD_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
