"""Artifacts that never arrive, are not files, or have a forbidden source: other models stay available."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from serving.errors import RegistryUnavailable
from serving.promotion_errors import UntrustedArtifact
from serving.registry import artifact_files, blocking_calls
from serving.registry import download_limits as downloads_module
from serving.registry.artifact_policy import ArtifactPolicy, is_within, local_folder
from serving.registry.download_limits import Downloads
from serving.settings.groups import ArtifactPolicySettings
from serving.settings.groups import RegistrySettings as RegistrySettings
from serving.version import Version
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, quiet, save_scripted_model
from tests.support.service import Service, served, until


class Trickle(BaseHTTPRequestHandler):
    """Responds with one byte at a time, without end."""

    begun = Event()

    def do_GET(self) -> None:
        self.begun.set()
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def trickling() -> Iterator[str]:
    """Run a server whose responses never end, and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/api/2.0/mlflow-artifacts/artifacts"
    server.shutdown()
    server.server_close()


def register(registry: Registry, name: str, source: str) -> str:
    """Register `source` as the next version of a model."""
    with quiet():
        if not registry.client.search_registered_models(f"name='{name}'"):
            registry.client.create_registered_model(name)
        return str(registry.client.create_model_version(name, source).version)


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve three models, of which two have an artifact source that never responds."""
    folder = tmp_path_factory.mktemp("downloads")
    registry = Registry(new_registry(folder))
    place = registry.folder / "allowed"
    place.mkdir()
    with trickling() as url:
        for name in ("first", "second"):
            registry.promote(name, register(registry, name, f"{url}/{name}"))
        registry.promote("third", registry.register("third", save_scripted_model(place, factor=1.0)))
        models = ",".join(f"models:/{name}/Production" for name in ("first", "second", "third"))
        allowed = f"{url},{place}"
        settings = {"models": models, "poll_seconds": 0.1, "allowed_sources": allowed}
        with served(registry.uri, folder, **settings, drain_seconds=1) as running:
            yield running
        # The service has ended, although both downloads hung.


@pytest.fixture(scope="module")
def third(service: Service) -> Model:
    return Model("third", service, Registry(service.env["MLFLOW_TRACKING_URI"]))


def test_row_50_hanging_downloads_do_not_delay_others(service: Service, third: Model) -> None:
    until(Trickle.begun.is_set)
    third.until_live("1")
    folder = third.registry.folder / "allowed"
    third.until_live(third.promote(third.registry.register("third", save_scripted_model(folder, factor=2.0))))
    assert third.is_well("2")
    first = Model("first", service, third.registry)
    assert first.state["candidate"]["state"] in ("loading", "waiting")
    first.promote(first.registry.register("first", save_scripted_model(folder, factor=2.0)))
    first.until_live("2")


@pytest.mark.parametrize(
    "form",
    [
        "file://localhost{}",
        "FILE://LocalHost{}",
        "file://127.0.0.1{}",
        "file:{}",
        "file://{}",
        "{}",
        "{}/.",
        "file://localhost{}/%2e",
    ],
)
def test_row_60_links_are_refused_in_all_file_urls(third: Model, form: str) -> None:
    folder = save_scripted_model(third.registry.folder / "allowed")
    (folder / "extra").symlink_to("/etc/passwd")
    assert "extra among its artifacts is a link" in rejection(third, form.format(folder))


@pytest.mark.parametrize(
    "form",
    [
        "file://localhost{}",
        "file:{}",
        "FILE://{}",
        "{}",
        "{}/../elsewhere",
        "file://localhost{}/%2e%2e/elsewhere",
    ],
)
def test_row_60_sources_that_are_not_allowed_are_refused(third: Model, form: str) -> None:
    source = form.format(save_scripted_model(third.registry.folder))
    assert "SERVING_ALLOWED_SOURCES" in rejection(third, source)


def test_row_60_linked_folder_that_leads_outside_is_refused(third: Model) -> None:
    link = third.registry.folder / "allowed" / "linked"
    link.symlink_to(save_scripted_model(third.registry.folder))
    assert "SERVING_ALLOWED_SOURCES" in rejection(third, f"file://localhost{link}")


def test_row_60_file_url_of_another_machine_is_refused(third: Model) -> None:
    assert "another machine" in rejection(third, "file://elsewhere.example/models/iris")


def rejection(model: Model, source: str) -> str:
    """Promote `source`, and return the reason of its rejection."""
    live = model.state["version"]
    version = register(model.registry, model.name, source)
    model.promote(version)
    reason = model.until_tagged(version, "rejected")["reason"]
    model.promote(live)
    model.until(lambda state: state["candidate"] is None)
    return reason


# -- unit tests


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/models/iris", "/models/iris"),
        ("/models/a%20b?c#d", "/models/a b?c#d"),
        ("file:///models/iris", "/models/iris"),
        ("file:/models/iris", "/models/iris"),
        ("FILE://LOCALHOST/models/iris", "/models/iris"),
        ("file://127.0.0.1/models/%69ris", "/models/iris"),
        ("file://[::1]/models/iris", "/models/iris"),
        ("s3://models/iris", None),
        ("mlflow-artifacts:/1", None),
    ],
)
def test_local_folder_is_recognised(location: str, expected: str | None) -> None:
    assert local_folder(location) == (Path(expected) if expected else None)


@pytest.mark.parametrize("host", ["elsewhere", "localhost:80", "user@localhost", "0.0.0.0", "127.0.0.2"])
def test_file_url_with_a_host_is_refused(host: str) -> None:
    version = Version(name="x", version="1", location=f"file://{host}/models", source="")
    with pytest.raises(UntrustedArtifact, match="another machine"):
        ArtifactPolicy(ArtifactPolicySettings()).check_source(version)


def test_local_host_is_below_a_local_path() -> None:
    assert is_within("file://localhost/models/iris", "/models")
    assert is_within("/models/iris", "file://localhost/models")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "bad")


def socket_file(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "bad"))


def link(folder: Path) -> None:
    (folder / "bad").symlink_to("/etc/passwd")


def linked_folder(folder: Path) -> None:
    (folder / "bad").symlink_to("/etc")


def sparse(folder: Path) -> None:
    (folder / "bad").touch()
    os.truncate(folder / "bad", 10**13)


def many(folder: Path) -> None:
    for number in range(artifact_files.MAX_FILES):
        (folder / str(number)).touch()


def line_break(folder: Path) -> None:
    (folder / "a\nb").touch()


def no_utf8(folder: Path) -> None:
    (folder / os.fsdecode(b"a\xff")).touch()


def deep(folder: Path) -> None:
    (folder / "/".join("d" * 100)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (fifo, "bad among its artifacts is no file"),
        (socket_file, "bad among its artifacts is no file"),
        (link, "bad among its artifacts is a link"),
        (linked_folder, "bad among its artifacts is a link"),
        (sparse, "larger than SERVING_MAX_MODEL_BYTES"),
        (many, "more than 20000 files"),
        (line_break, "not printable"),
        (no_utf8, "not printable"),
        (deep, "nested deeper"),
    ],
)
def test_folder_with_special_files_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "MLmodel").write_text("flavors: {}")
    spoil(source)
    with pytest.raises(UntrustedArtifact, match=expected):
        artifact_files.check_files(source, 2**30)
    with pytest.raises(UntrustedArtifact, match=expected):
        artifact_files.copy(source, tmp_path / "copy", 2**30)


def test_copy_has_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "source" / "data" / "empty").mkdir(parents=True)
    (tmp_path / "source" / "data" / "x").write_bytes(b"1" * 3_000_000)
    copied = artifact_files.copy(tmp_path / "source", tmp_path / "below" / "copy")
    assert (copied / "data" / "x").read_bytes() == b"1" * 3_000_000
    assert (copied / "data" / "empty").is_dir()


def test_copy_follows_no_link_in_its_path(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "source")
    with pytest.raises(OSError, match="link"):
        artifact_files.copy(tmp_path / "link", tmp_path / "copy")


@pytest.mark.anyio
async def test_stalled_download_is_abandoned(tmp_path: Path) -> None:
    settings = RegistrySettings(download_stall_seconds=0.1)
    released = Event()

    def hang(_: object) -> Path:
        released.wait()
        return tmp_path

    downloads = Downloads(settings)
    try:
        for _ in range(3):
            with pytest.raises(RegistryUnavailable, match="nothing was received"):
                await downloads.run("s3://a", tmp_path / "new", hang)
        with pytest.raises(RegistryUnavailable, match="have not ended"):
            await downloads.run("s3://a", tmp_path / "new", hang)
        assert await downloads.run("s3://b", tmp_path / "new", lambda _: tmp_path) == tmp_path
    finally:
        released.set()


@pytest.mark.anyio
async def test_download_beyond_the_size_limit_is_refused(tmp_path: Path) -> None:
    released = Event()

    def grow(_: object) -> Path:
        (tmp_path / "weights").write_bytes(b"1" * 2**21)
        released.wait()
        return tmp_path

    try:
        with pytest.raises(UntrustedArtifact, match="SERVING_MAX_MODEL_BYTES"):
            await Downloads(RegistrySettings(max_model_bytes=2**20)).run("s3://a", tmp_path, grow)
    finally:
        released.set()


@pytest.mark.anyio
async def test_hanging_call_can_be_abandoned() -> None:
    released = Event()
    future = blocking_calls.start(released.wait, name="test")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await future
    assert blocking_calls.is_any_left()
    released.set()
    assert await blocking_calls.start(lambda: 5, name="test") == 5
    with pytest.raises(ZeroDivisionError):
        await blocking_calls.start(lambda: 1 / 0, name="test")


@pytest.mark.anyio
async def test_trickling_downloads_do_not_delay_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads_module, "_MAX_COUNTED_SECONDS", 0.0)
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    downloads, released = Downloads(RegistrySettings()), Event()

    def trickle(_: object) -> Path:
        released.wait()
        return tmp_path

    hanging = [asyncio.create_task(downloads.run(f"s3://{n}", tmp_path / "link", trickle)) for n in range(4)]
    try:
        assert await downloads.run("s3://other", tmp_path / "link", lambda _: tmp_path) == tmp_path
    finally:
        released.set()
    await asyncio.gather(*hanging)
