"""Races in the store: abandoned downloads, and versions that go live in quick succession."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.registry.artifact_store import ArtifactStore, atomic_write, digest
from serving.version import Artifacts, Version

pytestmark = pytest.mark.anyio


def version(number: int) -> Version:
    return Version("iris", str(number), f"/nowhere/{number}", f"/nowhere/{number}")


async def test_abandoned_download_that_continues_is_no_failure(
    tmp_path: Path,
) -> None:
    """A thread cannot be cancelled: it keeps writing while its files are deleted."""
    under_way, enough = threading.Event(), threading.Event()

    def write(folder: Path) -> None:
        number = 0
        while not enough.is_set():
            number += 1
            place = folder / str(number % 50)
            place.mkdir(parents=True, exist_ok=True)
            (place / "file").write_bytes(b"x")
            under_way.set()

    async def download(_: Version, folder: Path) -> Path:
        await asyncio.to_thread(write, folder)
        return folder

    try:
        for attempt in range(5):
            under_way.clear()
            task = asyncio.create_task(ArtifactStore(tmp_path, str(attempt)).fetch(version(1), download))
            await asyncio.to_thread(under_way.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    finally:
        enough.set()


async def test_last_of_several_live_versions_is_loaded(tmp_path: Path) -> None:
    store, kept = ArtifactStore(tmp_path, "registry"), {}

    async def download(found: Version, folder: Path) -> Path:
        folder.mkdir()  # noqa: ASYNC240
        (folder / "MLmodel").write_text(str(found))
        return folder

    for number in range(10):
        kept[number] = await store.fetch(version(number), download)
    for last in range(10):
        order = [number for number in range(10) if number != last] + [last]
        await asyncio.gather(
            *(store.save_last_live("iris", version(number), kept[number]) for number in order)
        )
        recalled = await store.load_last_live("iris")
        assert recalled == (version(last), Artifacts(kept[last].folder, digest(kept[last].folder)))


def test_concurrent_fronts_leave_one_complete_record(tmp_path: Path) -> None:
    note, texts = tmp_path / "live" / "note.json", [str(number) * 10_000 for number in range(10)]

    def write(text: str) -> None:
        for _ in range(20):
            atomic_write(note, text)
            assert note.read_text() in texts

    with ThreadPoolExecutor(len(texts)) as fronts:
        assert [*fronts.map(write, texts)] == [None] * len(texts)
    assert [*note.parent.iterdir()] == [note]
