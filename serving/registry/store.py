"""Artifacts on the local disk, and the digest that tells whether they are what was downloaded."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from serving.errors import RegistryUnavailable
from serving.runtime.version import Artifacts, Version


class Store:
    """Keeps downloaded versions below `root`, apart for each registry; several fronts may share it."""

    def __init__(self, root: Path, registry_uri: str) -> None:
        self._root = root / hashlib.sha256(registry_uri.encode()).hexdigest()[:16]

    async def fetch(
        self, version: Version, download: Callable[[Version, Path], Awaitable[Path]]
    ) -> Artifacts:
        """The version's artifacts, downloaded unless they are here and whole.

        Raises:
            RegistryUnavailable: they could be neither read nor downloaded and kept.
        """
        place = self._root / hashlib.sha256(repr(version.identity).encode()).hexdigest()[:16]
        try:
            kept = await asyncio.to_thread(_kept, place)
            return kept or await self._keep(place, version, download)
        except OSError as error:
            raise RegistryUnavailable(f"the artifacts of {version} can't be kept: {error}") from error

    async def _keep(
        self, place: Path, version: Version, download: Callable[[Version, Path], Awaitable[Path]]
    ) -> Artifacts:
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix="fetching-") as new:
            files = await download(version, Path(new) / "download")
            found = await asyncio.to_thread(digest, files)
            whole = Path(new) / "whole"
            whole.mkdir()
            files.rename(whole / "artifacts")
            (whole / "digest").write_text(found)
            with suppress(OSError):  # another front may have been faster
                whole.rename(place)
        return Artifacts(place / "artifacts", found)


def digest(folder: Path) -> str:
    """`sha256:` and the SHA-256 over the sorted names and contents of all files below `folder`."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _kept(place: Path) -> Artifacts | None:
    """What was kept at `place`; None where there is nothing, or not what was downloaded."""
    try:
        expected = (place / "digest").read_text()
    except FileNotFoundError:
        return None
    if digest(place / "artifacts") == expected:
        return Artifacts(place / "artifacts", expected)
    shutil.rmtree(place)
    return None
