"""Downloads through a slow or interrupting proxy in front of a real MLflow server."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from serving.errors import (
    ArtifactsMissing,
    DiskError,
    RegistryDenied,
    RegistryFault,
    RegistryRejected,
    RegistryUnavailable,
)
from serving.evaluation import downloads as labelled_rows
from serving.evaluation.sources import FileSource
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.settings.settings import Settings
from serving.version import Version
from tests.support.mlflow_server import mlflow_server

pytestmark = pytest.mark.anyio

FIRST_BYTE_SECONDS = 8.0
CONTENT = bytes(range(256)) * 2000
CUT_AFTER = 200_000
PARTS = 9


class Proxy(ThreadingHTTPServer):
    """Forwards requests to `target`, with faults on the files of artifacts.

    Attributes:
        delays: seconds to wait before the first byte of a file, by the end of its path.
        files: a part of the paths of files.
        cuts: the number of responses with a file that end after `CUT_AFTER` bytes.
        paces: seconds before each part of the next responses with a file, which lack their last part.
        fails: the number of responses with a file that are an error of the status `failure`.
        hides_ranges: whether the server behind the proxy sees no `Range` header.
        stalls_calls: whether calls of the registry get no response.
        ranges: the `Range` headers of requests for files.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.target = urlsplit(target).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.delays: dict[str, float] = {}
        self.files = "/mlflow-artifacts/artifacts/"
        self.cuts = self.fails = 0
        self.paces: list[float] = []
        self.failure = 503
        self.hides_ranges = self.stalls_calls = False
        self.ranges: list[str] = []
        self.stopped = threading.Event()


class Forward(BaseHTTPRequestHandler):
    """One request to the proxy; each connection carries one request."""

    server: Proxy

    def do_GET(self) -> None:
        proxy, headers = self.server, dict(self.headers)
        is_file = proxy.files in self.path and self.command == "GET"
        if not is_file and "/mlflow-artifacts/" not in self.path and proxy.stalls_calls:
            proxy.stopped.wait()
            return
        if is_file:
            self._spoil(headers)
        body = self.rfile.read(int(headers.get("Content-Length", 0)))
        with closing(HTTPConnection(proxy.target)) as upstream:
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            content = response.read()
            status, sent = response.status, response.getheaders()
        if is_file and proxy.fails:
            proxy.fails -= 1
            status, content, sent = proxy.failure, b"", [("Content-Length", "0")]
        self.send_response_only(status)
        for name, value in sent:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if is_file and proxy.cuts and len(content) > CUT_AFTER:
            proxy.cuts -= 1
            content = content[:CUT_AFTER]
        if is_file and proxy.paces:
            self._write_slowly(content, proxy.paces.pop(0))
        else:
            self.wfile.write(content)

    do_HEAD = do_POST = do_GET

    def _write_slowly(self, content: bytes, pace: float) -> None:
        part = len(content) // PARTS
        for index in range(PARTS - 1):
            self.server.stopped.wait(pace)
            self.wfile.write(content[index * part : (index + 1) * part])

    def _spoil(self, headers: dict[str, str]) -> None:
        proxy = self.server
        if "Range" in headers:
            proxy.ranges.append(headers["Range"])
        if proxy.hides_ranges:
            headers.pop("Range", None)
        for end, seconds in proxy.delays.items():
            if self.path.endswith(end):
                proxy.stopped.wait(seconds)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def proxy(tracking: Any) -> Iterator[Proxy]:
    with Proxy(tracking.url) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.stopped.set()
        running.shutdown()


@pytest.fixture(scope="module")
def registered(tracking: Any, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Register a version with two files on the MLflow server, which stores its artifacts."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "data").mkdir()
    (folder / "data" / "weights").write_bytes(CONTENT)
    number = tracking.registry.register("large", folder)
    source = tracking.registry.client.get_model_version("large", number).source
    return Version(name="large", version=number, location=source, source=source)


@contextmanager
def client_of(proxy: Proxy, **settings: Any) -> Iterator[RegistryClient]:
    with closing(RegistryClient(Settings(tracking_uri=proxy.url, **settings))) as client:
        yield client


async def downloaded(proxy: Proxy, version: Version, folder: Path, **settings: Any) -> dict[str, bytes]:
    """Download a version, and return its files by their relative paths."""
    with client_of(proxy, **settings) as client:
        await client.resolve(Reference.parse("models:/large/1"))
        path = await client.download(version, folder / "new", lambda _: None)
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


FILES = {"MLmodel": b"flavors: {}", "data/weights": CONTENT}


async def test_slow_first_byte_does_not_fail_a_download(
    proxy: Proxy, registered: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A short limit for calls of the registry does not apply to downloads.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    proxy.delays = {"MLmodel": FIRST_BYTE_SECONDS}
    assert await downloaded(proxy, registered, tmp_path) == FILES


async def test_poll_of_a_stalled_server_fails_soon(proxy: Proxy, registered: Version) -> None:
    proxy.stalls_calls = True
    with client_of(proxy) as client:
        with pytest.raises(RegistryUnavailable, match=r"Read timed out.*read timeout=3\.0"):
            await client.resolve(Reference.parse("models:/large/1"))
        assert client.state == "away"


async def test_interrupted_file_is_continued(proxy: Proxy, registered: Version, tmp_path: Path) -> None:
    proxy.cuts = 2
    assert await downloaded(proxy, registered, tmp_path) == FILES
    assert proxy.ranges == [f"bytes={CUT_AFTER}-", f"bytes={2 * CUT_AFTER}-"]


async def test_interrupted_file_without_ranges_is_started_again(
    proxy: Proxy, registered: Version, tmp_path: Path
) -> None:
    proxy.cuts, proxy.hides_ranges = 2, True
    assert await downloaded(proxy, registered, tmp_path) == FILES
    assert len(proxy.ranges) == 2


async def test_file_that_is_always_interrupted_fails(
    proxy: Proxy, registered: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.registry.resumable_downloads._MAX_STARTS", 2)
    proxy.cuts, proxy.hides_ranges = 99, True
    with pytest.raises(
        RegistryUnavailable, match="was interrupted 2 times, and its server cannot continue it"
    ):
        await downloaded(proxy, registered, tmp_path)


async def test_server_that_is_unavailable_for_a_moment_is_retried(
    proxy: Proxy, registered: Version, tmp_path: Path
) -> None:
    proxy.fails = 2
    assert await downloaded(proxy, registered, tmp_path) == FILES


async def test_stalled_file_is_abandoned(proxy: Proxy, registered: Version, tmp_path: Path) -> None:
    proxy.delays = {"": 60.0}
    with pytest.raises(RegistryUnavailable, match="nothing was received for"):
        await downloaded(proxy, registered, tmp_path, download_stall_seconds=0.5)


def upload(location: str, folder: Path, content: bytes) -> None:
    """Store a file `weights` in a bucket."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder.mkdir()
    (folder / "weights").write_bytes(content)
    get_artifact_repository(location).log_artifacts(str(folder))


async def test_file_in_a_bucket_that_arrives_slowly_is_repeated(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = CONTENT * 5
    upload(f"{bucket}/large", tmp_path / "large", content)
    version = Version(name="large", version="1", location=f"{bucket}/large", source="")
    with Proxy(os.environ["MLFLOW_S3_ENDPOINT_URL"]) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        # The first response arrives for longer than the limit, and boto3 gives up after its fifth attempt.
        proxy.files, proxy.paces = "/large/weights", [0.9, 0, 0, 0, 0]
        settings = Settings(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", download_stall_seconds=4)
        with closing(RegistryClient(settings)) as client:
            path = await client.download(version, tmp_path / "new", lambda _: None)
        assert (path / "weights").read_bytes() == content
        assert not proxy.paces
        proxy.stopped.set()
        proxy.shutdown()


async def test_interrupted_chunk_of_a_signed_url_is_repeated(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(f"{bucket}/large", tmp_path / "large", CONTENT)
    with Proxy(os.environ["MLFLOW_S3_ENDPOINT_URL"]) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
        monkeypatch.setenv("MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE", str(CUT_AFTER))
        database, destination = f"sqlite:///{tmp_path}/mlflow.db", ("--artifacts-destination", bucket)
        with mlflow_server(tmp_path, database, *destination) as url:
            version = Version(name="large", version="1", location="mlflow-artifacts:/large", source="")
            proxy.files, proxy.paces = "/weights", [0, 0]
            with closing(RegistryClient(Settings(tracking_uri=url))) as client:
                assert not await client.versions("large")  # MLflow's client is ready
                path = await client.download(version, tmp_path / "new", lambda _: None)
        assert (path / "weights").read_bytes() == CONTENT
        chunks = -(-len(CONTENT) // CUT_AFTER)
        assert len(proxy.ranges) == chunks + 2
        proxy.stopped.set()
        proxy.shutdown()


async def test_labelled_rows_survive_a_slow_first_byte_and_an_interruption(
    tracking: Any, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    rows = b"x,target\n" + b"1.5,3.0\n" * 50_000
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.csv").write_bytes(rows)
    number = tracking.registry.register("rows", tmp_path / "rows")
    source = FileSource(f"models:/rows/{number}/rows.csv", hashlib.sha256(rows).hexdigest())
    proxy.delays, proxy.cuts = {"rows.csv": FIRST_BYTE_SECONDS}, 1
    with client_of(proxy) as client:
        labelled = await labelled_rows.download(source, client, Settings(tracking_uri=proxy.url))
    assert len(labelled) == 50_000
    assert proxy.ranges == [f"bytes={CUT_AFTER}-"]


async def test_version_without_files_is_reported(proxy: Proxy, registered: Version, tmp_path: Path) -> None:
    empty = Version(name="large", version="1", location="mlflow-artifacts:/none", source="")
    with pytest.raises(ArtifactsMissing, match="has no files of this version"):
        await downloaded(proxy, empty, tmp_path)


async def test_error_of_the_artifact_server_is_reported_at_once(
    proxy: Proxy, registered: Version, tmp_path: Path
) -> None:
    proxy.fails = 99
    with pytest.raises(RegistryUnavailable, match="503"):
        await downloaded(proxy, registered, tmp_path)
    assert not proxy.ranges


@pytest.mark.parametrize(
    ("status", "kind", "remedy"),
    [
        (400, RegistryRejected, "the artifact store rejects the request"),
        (401, RegistryDenied, "credentials"),
        (403, RegistryDenied, "list and read the version's files"),
        (404, ArtifactsMissing, "location of the version's artifacts"),
        (500, RegistryFault, "see the log of the artifact store"),
    ],
)
async def test_failure_of_a_file_keeps_its_cause(
    proxy: Proxy,
    registered: Version,
    tmp_path: Path,
    status: int,
    kind: type[RegistryUnavailable],
    remedy: str,
) -> None:
    proxy.fails, proxy.failure = 99, status
    with pytest.raises(RegistryUnavailable, match=remedy) as failed:
        await downloaded(proxy, registered, tmp_path)
    assert type(failed.value) is kind
    assert str(status) in str(failed.value)
    assert "127.0.0.1" not in str(failed.value)


async def test_failure_of_the_local_disk_is_not_one_of_the_registry(
    proxy: Proxy, registered: Version, tmp_path: Path
) -> None:
    (tmp_path / "new" / "data" / "weights").mkdir(parents=True)
    with pytest.raises(DiskError, match="the disk of the service cannot store them: IsADirectoryError"):
        await downloaded(proxy, registered, tmp_path)
