"""Stores artifacts on the local disk, with a digest that verifies them, and the last live versions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.errors import DiskError
from serving.registry.address_masking import public
from serving.version import Artifacts, Version

log = logging.getLogger("serving.store")
_MAX_CACHED_VERSIONS = 3
_MIN_AGE_SECONDS = 3600
_FOLDERS = ("live", "history", "attempts")
_CACHE_NAME = re.compile("[0-9a-f]{16}")


class ArtifactStore:
    """Stores downloaded versions below `root`, separately by registry; several fronts may share it."""

    def __init__(self, root: Path, registry_uri: str) -> None:
        self._root = root / hashlib.sha256(registry_uri.encode()).hexdigest()[:16]
        self._saving = asyncio.Lock()

    def history(self, reference: str) -> Path:
        """Return the path of the history of a reference."""
        name = hashlib.sha256(reference.encode()).hexdigest()[:16]
        return self._root / "history" / f"{name}.jsonl"

    @property
    def attempts(self) -> Path:
        """Return the folder for the markers of versions under verification."""
        return self._root / "attempts"

    async def has_served(self, version: Version, reference: str | None = None) -> bool:
        """Return whether the version is among the last live versions of a reference; None: of any."""
        name = self._cache_dir(version).name
        return await asyncio.to_thread(lambda: name in self._last_live_names(reference))

    async def fetch(
        self, version: Version, download: Callable[[Version, Path], Awaitable[Path]]
    ) -> Artifacts:
        """Return the version's artifacts, downloaded unless they are stored and intact.

        Raises:
            RegistryUnavailable: they could be neither read nor downloaded and stored.
        """
        cache_dir = self._cache_dir(version)
        try:
            stored = await asyncio.to_thread(_load_verified, cache_dir)
            return stored or await self._download(cache_dir, version, download)
        except OSError as error:
            message = f"the artifacts of {version} can't be stored: {public(str(error))}"
            raise DiskError(message, detail=str(error)) from error

    async def discard(self, version: Version) -> None:
        """Delete the stored artifacts of the version, so that they are downloaded again."""
        await asyncio.to_thread(shutil.rmtree, self._cache_dir(version), ignore_errors=True)

    async def save_last_live(self, reference: str, version: Version, artifacts: Artifacts) -> None:
        """Record that the version went live for the reference, and delete obsolete artifacts.

        A failed write is logged, and does not affect serving.
        """
        try:
            async with self._saving:  # in order, so that the version that went live last comes first
                await asyncio.to_thread(self._save_last_live, reference, version, artifacts)
        except OSError as error:
            message = "%s could not be recorded as last known good: %s"
            log.warning(message, version, error, extra=version.in_logs)

    async def load_last_live(self, reference: str) -> tuple[Version, Artifacts] | None:
        """Return the version that went live last for the reference, if its artifacts are intact."""
        return await asyncio.to_thread(self._load_last_live, reference)

    # -- in threads

    def _cache_dir(self, version: Version) -> Path:
        return self._root / hashlib.sha256(repr(version.identity).encode()).hexdigest()[:16]

    def _record_file(self, reference: str) -> Path:
        return self._root / "live" / f"{hashlib.sha256(reference.encode()).hexdigest()[:16]}.json"

    def _save_last_live(self, reference: str, version: Version, artifacts: Artifacts) -> None:
        file, name = self._record_file(reference), artifacts.folder.parent.name
        records = [record for record in _read_records(file) if record["place"] != name]
        records.insert(0, {"place": name, "version": asdict(version)})
        atomic_write(file, json.dumps(records[:_MAX_CACHED_VERSIONS]))
        self._prune()

    def _load_last_live(self, reference: str) -> tuple[Version, Artifacts] | None:
        for record in _read_records(self._record_file(reference))[:1]:
            with suppress(OSError, TypeError, KeyError):
                if artifacts := _load_verified(self._root / record["place"]):
                    return Version(**record["version"] | {"aliases": ()}), artifacts
        return None

    def _prune(self) -> None:
        """Delete all but the last live versions and new ones, which another front may be using."""
        last_live = self._last_live_names()
        for folder in self._root.iterdir():
            old = time.time() - folder.stat().st_mtime > _MIN_AGE_SECONDS
            if old and folder.name not in last_live and folder.name not in _FOLDERS:
                shutil.rmtree(folder, ignore_errors=True)

    def _last_live_names(self, reference: str | None = None) -> set[str]:
        files = [self._record_file(reference)] if reference else self._root.glob("live/*.json")
        return {record["place"] for file in files for record in _read_records(file)}

    async def _download(
        self, cache_dir: Path, version: Version, download: Callable[[Version, Path], Awaitable[Path]]
    ) -> Artifacts:
        self._root.mkdir(parents=True, exist_ok=True)
        new = await asyncio.to_thread(tempfile.mkdtemp, dir=self._root, prefix="fetching-")
        try:
            files = await download(version, Path(new) / "download")
            sha256 = await asyncio.to_thread(digest, files)
            complete = Path(new) / "complete"
            complete.mkdir()
            files.rename(complete / "artifacts")
            (complete / "digest").write_text(sha256)
            try:
                complete.rename(cache_dir)
            except OSError:
                # Another front may have been faster.
                if stored := await asyncio.to_thread(_load_verified, cache_dir):
                    return stored
                raise
        finally:
            # The thread of an abandoned download keeps writing, so its folder cannot always be deleted.
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, new, ignore_errors=True))
        return Artifacts(cache_dir / "artifacts", sha256)


def atomic_write(file: Path, text: str) -> None:
    """Write a file atomically: readers see its old or its new content, also after a crash."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="writing-") as folder:
        new = Path(folder) / file.name
        new.write_text(text)
        new.replace(file)


def _read_records(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    records = [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []
    return [record for record in records if _CACHE_NAME.fullmatch(str(record.get("place")))]


def digest(folder: Path) -> str:
    """Return `sha256:` and the SHA-256 over the sorted names and contents of all files below `folder`."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _load_verified(cache_dir: Path) -> Artifacts | None:
    """Return the stored artifacts; delete them and return None if they are missing or damaged."""
    with suppress(FileNotFoundError):
        expected = (cache_dir / "digest").read_text(errors="replace")
        if digest(cache_dir / "artifacts") == expected:
            return Artifacts(cache_dir / "artifacts", expected)
    with suppress(FileNotFoundError):
        shutil.rmtree(cache_dir)
    return None
