"""Artifacts on the local disk, and the digest that tells whether they are what was downloaded."""

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

from serving.errors import RegistryUnavailable
from serving.version import Artifacts, Version

log = logging.getLogger("serving.store")
_MAX_CACHED_VERSIONS = 3
_KEPT_SECONDS = 3600
_FOLDERS = ("live", "history", "attempts")
_PLACE = re.compile("[0-9a-f]{16}")


class ArtifactStore:
    """Keeps downloaded versions below `root`, apart for each registry; several fronts may share it."""

    def __init__(self, root: Path, registry_uri: str) -> None:
        self._root = root / hashlib.sha256(registry_uri.encode()).hexdigest()[:16]
        self._remembering = asyncio.Lock()

    def history(self, reference: str) -> Path:
        """The file for the history of a reference."""
        name = hashlib.sha256(reference.encode()).hexdigest()[:16]
        return self._root / "history" / f"{name}.jsonl"

    @property
    def attempts(self) -> Path:
        """The folder for the markers of versions under verification."""
        return self._root / "attempts"

    async def has_served(self, version: Version) -> bool:
        """Return whether the version is noted to have been live, and not long ago."""
        place = self._place(version).name
        return await asyncio.to_thread(lambda: place in self._noted_places())

    async def fetch(
        self, version: Version, download: Callable[[Version, Path], Awaitable[Path]]
    ) -> Artifacts:
        """The version's artifacts, downloaded unless they are here and whole.

        Raises:
            RegistryUnavailable: they could be neither read nor downloaded and kept.
        """
        place = self._place(version)
        try:
            kept = await asyncio.to_thread(_load_verified, place)
            return kept or await self._keep(place, version, download)
        except OSError as error:
            raise RegistryUnavailable(f"the artifacts of {version} can't be kept: {error}") from error

    async def discard(self, version: Version) -> None:
        """Forget what was kept of the version, so that it is downloaded again."""
        await asyncio.to_thread(shutil.rmtree, self._place(version), ignore_errors=True)

    async def save_last_live(self, reference: str, version: Version, artifacts: Artifacts) -> None:
        """Note that the version went live for the reference; what went live long before may go.

        A disk that does not take the note is no reason to serve less.
        """
        try:
            async with self._remembering:  # one after the other, so that the last that went live stands first
                await asyncio.to_thread(self._remember, reference, version, artifacts)
        except OSError as error:
            said = "%s could not be noted as last known good: %s"
            log.warning(said, version, error, extra=version.in_logs)

    async def load_last_live(self, reference: str) -> tuple[Version, Artifacts] | None:
        """The version that went live last for the reference, if it is still here and whole."""
        return await asyncio.to_thread(self._recall, reference)

    # -- in threads

    def _place(self, version: Version) -> Path:
        return self._root / hashlib.sha256(repr(version.identity).encode()).hexdigest()[:16]

    def _note(self, reference: str) -> Path:
        return self._root / "live" / f"{hashlib.sha256(reference.encode()).hexdigest()[:16]}.json"

    def _remember(self, reference: str, version: Version, artifacts: Artifacts) -> None:
        note = self._note(reference)
        live = [fact for fact in _read_records(note) if fact["place"] != artifacts.folder.parent.name]
        live.insert(0, {"place": artifacts.folder.parent.name, "version": asdict(version)})
        atomic_write(note, json.dumps(live[:_MAX_CACHED_VERSIONS]))
        self._prune()

    def _recall(self, reference: str) -> tuple[Version, Artifacts] | None:
        for fact in _read_records(self._note(reference))[:1]:
            with suppress(OSError, TypeError, KeyError):
                if artifacts := _load_verified(self._root / fact["place"]):
                    return Version(**fact["version"] | {"aliases": ()}), artifacts
        return None

    def _prune(self) -> None:
        """Remove what never went live or did so long ago, unless it is new: another front may be using it."""
        noted = self._noted_places()
        for place in self._root.iterdir():
            old = time.time() - place.stat().st_mtime > _KEPT_SECONDS
            if old and place.name not in noted and place.name not in _FOLDERS:
                shutil.rmtree(place, ignore_errors=True)

    def _noted_places(self) -> set[str]:
        return {fact["place"] for note in self._root.glob("live/*.json") for fact in _read_records(note)}

    async def _keep(
        self, place: Path, version: Version, download: Callable[[Version, Path], Awaitable[Path]]
    ) -> Artifacts:
        self._root.mkdir(parents=True, exist_ok=True)
        new = await asyncio.to_thread(tempfile.mkdtemp, dir=self._root, prefix="fetching-")
        try:
            files = await download(version, Path(new) / "download")
            found = await asyncio.to_thread(digest, files)
            whole = Path(new) / "whole"
            whole.mkdir()
            files.rename(whole / "artifacts")
            (whole / "digest").write_text(found)
            try:
                whole.rename(place)
            except OSError:
                # Another front may have been faster.
                if kept := await asyncio.to_thread(_load_verified, place):
                    return kept
                raise
        finally:
            # The thread of a download that is given up writes on, so that its folder can't always be removed.
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, new, ignore_errors=True))
        return Artifacts(place / "artifacts", found)


def atomic_write(file: Path, text: str) -> None:
    """Have the file hold this text or what it held before, whoever else writes it and whenever this ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="writing-") as folder:
        new = Path(folder) / file.name
        new.write_text(text)
        new.replace(file)


def _read_records(note: Path) -> list[dict[str, Any]]:
    try:
        noted = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return []
    facts = [fact for fact in noted if isinstance(fact, dict)] if isinstance(noted, list) else []
    return [fact for fact in facts if _PLACE.fullmatch(str(fact.get("place")))]


def digest(folder: Path) -> str:
    """`sha256:` and the SHA-256 over the sorted names and contents of all files below `folder`."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _load_verified(place: Path) -> Artifacts | None:
    """What was kept at `place`; None where there is nothing, or not what was downloaded."""
    with suppress(FileNotFoundError):
        expected = (place / "digest").read_text(errors="replace")
        if digest(place / "artifacts") == expected:
            return Artifacts(place / "artifacts", expected)
    with suppress(FileNotFoundError):
        shutil.rmtree(place)
    return None
