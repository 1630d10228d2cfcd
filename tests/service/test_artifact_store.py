"""Artifacts on the local disk are used while they are intact, and downloaded again otherwise."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DiskError, RegistryUnavailable
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore, digest
from serving.registry.client import RegistryClient
from serving.settings.settings import Settings
from serving.version import Artifacts, Version
from tests.support.registry import Registry, save_scripted_model

pytestmark = pytest.mark.anyio

REFERENCE = "models:/actor/Production"


class Downloads:
    """Counts the real downloads from the registry."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client
        self.count = 0

    async def __call__(self, version: Version, folder: Path) -> Path:
        self.count += 1
        return await self.client.download(version, folder, lambda _: None)


@pytest.fixture
def saved(registry: str, tmp_path: Path) -> Path:
    """Register a model as version 1 of `actor`."""
    folder = save_scripted_model(tmp_path)
    Registry(registry).register("actor", folder)
    return folder


@pytest.fixture
def client(registry: str) -> Iterator[RegistryClient]:
    with closing(RegistryClient(Settings(tracking_uri=registry))) as opened:
        yield opened


@pytest.fixture
def download(client: RegistryClient) -> Downloads:
    return Downloads(client)


@pytest.fixture
async def version(client: RegistryClient, saved: Path) -> Version:
    result, _ = await client.resolve(Reference.parse("models:/actor/1"))
    return await client.complete(result)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", "sqlite:///registry")


# -- stored copies


async def test_fetched_artifacts_equal_the_logged_ones(
    store: ArtifactStore, version: Version, download: Downloads, saved: Path
) -> None:
    artifacts = await store.fetch(version, download)
    assert artifacts.digest == digest(artifacts.folder) == digest(saved)
    assert (artifacts.folder / "MLmodel").read_bytes() == (saved / "MLmodel").read_bytes()


async def test_stored_copy_is_not_downloaded_again(
    store: ArtifactStore, version: Version, download: Downloads, tmp_path: Path
) -> None:
    first = await store.fetch(version, download)
    assert await store.fetch(version, download) == first
    assert await ArtifactStore(tmp_path / "store", "sqlite:///registry").fetch(version, download) == first
    assert download.count == 1


async def test_registries_have_separate_copies(
    store: ArtifactStore, version: Version, download: Downloads, tmp_path: Path
) -> None:
    first = await store.fetch(version, download)
    other = await ArtifactStore(tmp_path / "store", "sqlite:///other").fetch(version, download)
    assert first.folder != other.folder
    assert download.count == 2


async def test_versions_are_stored_separately(
    store: ArtifactStore,
    version: Version,
    download: Downloads,
    registry: str,
    saved: Path,
    client: RegistryClient,
) -> None:
    Registry(registry).register("actor", saved)
    second, _ = await client.resolve(Reference.parse("models:/actor/2"))
    folders = {(await store.fetch(item, download)).folder for item in (version, second)}
    assert len(folders) == 2


def _flip(folder: Path) -> None:
    path = max(
        (folder / "artifacts").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOILT: dict[str, Callable[[Path], object]] = {
    "one bit": _flip,
    "truncated": lambda folder: os.truncate(folder / "artifacts" / "MLmodel", 10),
    "empty": lambda folder: os.truncate(folder / "artifacts" / "MLmodel", 0),
    "a file less": lambda folder: (folder / "artifacts" / "MLmodel").unlink(),
    "a file more": lambda folder: (folder / "artifacts" / "more.py").touch(),
    "renamed": lambda folder: (folder / "artifacts" / "MLmodel").rename(folder / "artifacts" / "mlmodel"),
    "no files": lambda folder: shutil.rmtree(folder / "artifacts"),
    "no digest": lambda folder: (folder / "digest").unlink(),
    "an empty digest": lambda folder: (folder / "digest").write_bytes(b""),
    "a garbled digest": lambda folder: (folder / "digest").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_damaged_copy_is_downloaded_again(
    store: ArtifactStore, version: Version, download: Downloads, spoil: Callable[[Path], object]
) -> None:
    first = await store.fetch(version, download)
    spoil(first.folder.parent)
    again = await store.fetch(version, download)
    assert download.count == 2
    assert again == first
    assert digest(again.folder) == again.digest
    assert await store.fetch(version, download) == first
    assert download.count == 2


async def test_several_fronts_can_fetch_at_once(
    version: Version, download: Downloads, tmp_path: Path
) -> None:
    stores = [ArtifactStore(tmp_path / "store", "sqlite:///registry") for _ in range(3)]
    result = await asyncio.gather(*(store.fetch(version, download) for store in stores))
    assert len({artifacts.digest for artifacts in result}) == 1
    assert all(digest(artifacts.folder) == artifacts.digest for artifacts in result)
    assert fetching(tmp_path) == []


async def test_discarded_version_is_downloaded_again(
    store: ArtifactStore, version: Version, download: Downloads
) -> None:
    first = await store.fetch(version, download)
    await store.discard(version)
    assert not first.folder.exists()
    assert await store.fetch(version, download) == first
    assert download.count == 2


# -- failures


def fetching(folder: Path) -> list[Path]:
    """Return the files that unfinished downloads left."""
    return [*(folder / "store").rglob("fetching-*")]


async def test_failed_download_leaves_nothing(
    store: ArtifactStore, version: Version, download: Downloads, saved: Path, tmp_path: Path
) -> None:
    shutil.move(saved, tmp_path / "away")
    with pytest.raises(RegistryUnavailable, match="the artifacts of actor version 1: .* No such file"):
        await store.fetch(version, download)
    assert fetching(tmp_path) == []
    shutil.move(tmp_path / "away", saved)
    assert (await store.fetch(version, download)).digest == digest(saved)


async def test_abandoned_download_leaves_nothing(
    store: ArtifactStore, version: Version, download: Downloads, tmp_path: Path
) -> None:
    under_way = asyncio.Event()

    async def endless(_: Version, folder: Path) -> Path:
        await asyncio.to_thread(folder.mkdir)
        under_way.set()
        await asyncio.Event().wait()
        return folder

    task = asyncio.create_task(store.fetch(version, endless))
    await under_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fetching(tmp_path) == []
    assert (await store.fetch(version, download)).folder.is_dir()


async def test_read_only_disk_is_reported(version: Version, download: Downloads, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="actor version 1 can't be stored: .*Not a directory: '…'"):
        await ArtifactStore(tmp_path / "file", "sqlite:///registry").fetch(version, download)


async def test_full_disk_is_reported(store: ArtifactStore, version: Version, tmp_path: Path) -> None:
    async def full(_: Version, __: Path) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left on device"):
        await store.fetch(version, full)
    assert fetching(tmp_path) == []


# -- the last known good version


async def test_last_live_version_is_loaded(
    store: ArtifactStore, version: Version, download: Downloads, tmp_path: Path
) -> None:
    assert await store.load_last_live(REFERENCE) is None
    artifacts = await store.fetch(version, download)
    await store.save_last_live(REFERENCE, version, artifacts)
    after_restart = ArtifactStore(tmp_path / "store", "sqlite:///registry")
    recalled = await after_restart.load_last_live(REFERENCE)
    assert recalled is not None
    assert recalled[0].identity == version.identity
    assert recalled[1] == artifacts
    assert await after_restart.load_last_live("models:/other/Production") is None


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_damaged_last_live_copy_is_not_loaded(
    store: ArtifactStore, version: Version, download: Downloads, spoil: Callable[[Path], object]
) -> None:
    artifacts = await store.fetch(version, download)
    await store.save_last_live(REFERENCE, version, artifacts)
    spoil(artifacts.folder.parent)
    assert await store.load_last_live(REFERENCE) is None


@pytest.mark.parametrize(
    "note", [b"", b"{", b"\xff", b"{}", b"[1]", b"[{}]", b'[{"place": 5}]', b'[{"place": ""}]']
)
async def test_damaged_record_is_ignored(
    store: ArtifactStore, version: Version, download: Downloads, tmp_path: Path, note: bytes
) -> None:
    artifacts = await store.fetch(version, download)
    await store.save_last_live(REFERENCE, version, artifacts)
    (file,) = (tmp_path / "store").rglob("live/*")
    file.write_bytes(note)
    assert await store.load_last_live(REFERENCE) is None
    await store.save_last_live(REFERENCE, version, artifacts)
    assert await store.load_last_live(REFERENCE) is not None


async def test_failed_record_write_is_no_error(version: Version, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ArtifactStore(tmp_path / "file", "sqlite:///registry")
    await store.save_last_live(REFERENCE, version, Artifacts(tmp_path / "place" / "artifacts", "sha256:0"))
    assert await store.load_last_live(REFERENCE) is None


# -- digests

trees = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "c.d"]), min_size=1, max_size=2).map("_/".join),
    st.binary(max_size=3),
    max_size=4,
)


def plant(tree: dict[str, bytes], folder: Path, backwards: bool = False) -> str:
    for name in sorted(tree, reverse=backwards):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tree[name])
    return digest(folder)


@given(trees, trees)
def test_digest_depends_on_contents_and_names_only(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        result = plant(one, Path(first))
        assert result.startswith("sha256:")
        assert (result == plant(other, Path(second), backwards=True)) is (one == other)
