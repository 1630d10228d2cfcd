"""Downloads the files of a version, and resumes after interruptions.

MLflow's own download gives up at the first interruption, and applies the short timeout of registry calls to
the first byte of a file. A server that fetches a file from a bucket first may need minutes for that byte.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from serving.backoff import Backoff
from serving.errors import ArtifactsMissing, RegistryUnavailable, ServingError
from serving.registry import blocking_calls, bounded_http
from serving.registry.download_progress import DownloadProgress
from serving.registry.mlflow_errors import is_transient

log = logging.getLogger("serving.store")
P = ParamSpec("P")
T = TypeVar("T")

CONNECT_SECONDS = 10.0
_CHUNK = 2**16
_MAX_THREADS = 8
_MAX_ATTEMPTS_BEFORE_PROGRESS = 3
"""Before anything was received, the follower retries instead: it reports the cause in the meantime."""
_BACKOFF = Backoff(0.5, 8.0, jitter=0.2)
_MAX_STARTS = 5
"""A server that cannot continue a file, and interrupts it this often, will not send it at all."""
_PARTIAL, _UNSATISFIABLE = 206, 416
_CHUNK_POOLS = ("chunk_thread_pool", "_chunk_thread_pool")
"""Attributes of MLflow's repositories with the threads for the chunks of a large file."""


def download(
    open_repository: Callable[[], Any], folder: Path, progress: DownloadProgress, path: str = ""
) -> Path:
    """Download files of an artifact repository into `folder`; return their path there.

    A file that is interrupted is continued where the server supports it, and otherwise downloaded again,
    until the progress stalls.

    Args:
        open_repository: Returns MLflow's repository of the artifacts.
        folder: The folder to create.
        progress: Is kept up to date.
        path: The file in the repository; all of its files by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bounded_http.set_timeout(CONNECT_SECONDS, progress.stall_seconds)
    repository = _innermost(open_repository())
    transfer = _Transfer(folder, progress)
    transfer.attach(repository)
    try:
        local = Path(repository.download_artifacts(path, str(folder)))
    except Exception:
        if transfer.failure:  # MLflow reports the failures of files as one text, without their causes
            raise transfer.failure  # noqa: B904 — its own cause is the one to report
        raise
    finally:
        transfer.close()
    if not any(folder.iterdir()):
        raise ArtifactsMissing("the artifact store has no files of this version: log the model again")
    return local


class _Transfer:
    """One download of the files of a repository: its threads, and when one of the files is abandoned."""

    def __init__(self, folder: Path, progress: DownloadProgress) -> None:
        self._folder, self.progress = folder, progress
        self._pools: list[ThreadPoolExecutor] = []
        self.failure: Exception | None = None
        """The first failure of a file or a chunk that is not retried."""

    def attach(self, repository: Any) -> None:
        """Make MLflow's artifact repository download and list with retries, in new threads."""
        fetch, listed = repository._download_file, repository.list_artifacts
        is_continued, files = _is_continued(repository), dict[str, _File]()

        def fetch_retried(remote_file_path: str, local_path: str) -> None:
            new = (
                _HttpFile(repository, remote_file_path, Path(local_path))
                if is_continued
                else _WholeFile(partial(fetch, remote_file_path, local_path), remote_file_path)
            )
            file = files.setdefault(local_path, new)
            self.retried(remote_file_path, lambda: file.receive(self))
            self.progress.record()

        repository._download_file = fetch_retried
        repository.list_artifacts = lambda path=None: self.retried(path or "", lambda: listed(path))
        repository.thread_pool = _DownloadThreads(self)
        self._pools.append(repository.thread_pool)
        for name in _CHUNK_POOLS:
            if name in vars(repository):
                self._pools.append(_ChunkThreads(self))
                setattr(repository, name, self._pools[-1])

    def close(self) -> None:
        """Start no further file or chunk, and do not wait for the present ones."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def check_wanted(self) -> None:
        """Stop the transfer if its folder was deleted: it was abandoned."""
        if not self._folder.exists():
            raise RegistryUnavailable("the download was abandoned")

    def retried(self, name: str, call: Callable[[], T]) -> T:
        """Return the result of a call, which is repeated until it succeeds or the download stalls."""
        try:
            return self._repeat(name, call)
        except Exception as error:
            self.failure = self.failure or error
            raise

    def _repeat(self, name: str, call: Callable[[], T]) -> T:
        failures, progress = 0, self.progress
        while True:
            self.check_wanted()
            try:
                result = call()
            except ServingError:
                raise
            except Exception as error:
                failures += 1
                if not is_transient(error) or progress.left <= 0:
                    raise
                if not progress.has_received and failures >= _MAX_ATTEMPTS_BEFORE_PROGRESS:
                    raise
                log.info("the download of %r was interrupted, and continues: %s", name, error)
                time.sleep(min(_BACKOFF.delay(failures - 1), max(progress.left, 0)))
            else:
                progress.extend()
                return result


class _DownloadThreads(ThreadPoolExecutor):
    """The threads of one download, with its limits of time."""

    def __init__(self, transfer: _Transfer) -> None:
        self._transfer = transfer
        limits = (CONNECT_SECONDS, transfer.progress.stall_seconds, bounded_http.MAX_PART_BYTES)
        # The name shows that the threads may be abandoned.
        name = blocking_calls.thread_name("download")
        super().__init__(_MAX_THREADS, name, bounded_http.set_timeout, limits)


class _ChunkThreads(_DownloadThreads):
    """Threads for the chunks of large files: an interrupted chunk is downloaded again, not the whole file."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start the download of a chunk."""

        def fetch() -> T:
            result = self._transfer.retried("a chunk", partial(fn, *args, **kwargs))
            self._transfer.progress.record()
            return result

        return super().submit(fetch)


class _PartRefused(Exception):
    """The server cannot continue a file; the next attempt starts it again."""


class _File(Protocol):
    """One file of a download."""

    def receive(self, transfer: _Transfer) -> None:
        """Receive what is missing of the file."""


class _WholeFile:
    """One file that a client of MLflow downloads; an interruption that the client reports starts it again."""

    def __init__(self, fetch: Callable[[], None], remote: str) -> None:
        self._fetch, self._remote = fetch, remote
        self._interruptions = 0

    def receive(self, transfer: _Transfer) -> None:
        """Receive the file."""
        started = time.monotonic()
        try:
            self._fetch()
        except Exception as error:
            self._interruptions += transfer.progress.is_later_than(started)
            if is_transient(error) and self._interruptions >= _MAX_STARTS:
                raise _not_continued(self._remote) from error
            raise


class _HttpFile:
    """One file on an HTTP server, which may have been received in part."""

    def __init__(self, repository: Any, remote: str, local: Path) -> None:
        self._repository, self._remote, self._local = repository, remote, local
        self._validator: str | None = None
        """Identifies the content of the part on disk; None: it cannot be continued."""
        self._starts = 0

    def receive(self, transfer: _Transfer) -> None:
        """Receive what is missing of the file."""
        from mlflow.utils import rest_utils

        rest: Any = rest_utils
        offset = self._local.stat().st_size if self._validator and self._local.exists() else 0
        # An encoded response cannot be continued: its offsets are those of the encoded bytes.
        headers = {"Accept-Encoding": "identity"}
        if offset and self._validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": self._validator}
        timeout = (CONNECT_SECONDS, max(transfer.progress.left, 1.0))
        options = {"extra_headers": headers, "timeout": timeout, "max_retries": 0, "stream": True}
        host = self._repository._host_creds
        with rest.http_request(host, f"/{self._remote}", "GET", raise_on_status=False, **options) as response:
            is_continued = response.status_code == _PARTIAL and _starts_at(response, offset)
            if response.status_code in (_PARTIAL, _UNSATISFIABLE) and not is_continued:
                self._validator = None
                raise _PartRefused("the artifact server sent another part of the file than was requested")
            rest.augmented_raise_for_status(response)
            self._starts += not is_continued
            if self._starts > _MAX_STARTS:
                raise _not_continued(self._remote)
            self._validator = _validator(response)
            self._write(response, "ab" if is_continued else "wb", transfer)

    def _write(self, response: Any, mode: str, transfer: _Transfer) -> None:
        with self._local.open(mode, buffering=0) as file:
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                transfer.check_wanted()
                file.write(chunk)
                transfer.progress.record()


def _not_continued(remote: str) -> RegistryUnavailable:
    reason = f"was interrupted {_MAX_STARTS} times, and its server cannot continue it"
    return RegistryUnavailable(f"the download of {remote!r} {reason}")


def _innermost(repository: Any) -> Any:
    """Return the repository that transfers the files: some of MLflow's delegate to another one."""
    while True:
        if create := getattr(repository, "_get_artifact_repo", None):  # of Unity Catalog
            repository = create()
        elif inner := getattr(repository, "repo", None):  # of URIs such as models:/ and runs:/
            repository = inner
        else:
            return repository


def _is_continued(repository: Any) -> bool:
    """Return whether the files come from the MLflow server, in one response each.

    With signed URLs, MLflow downloads them from their bucket, in chunks.
    """
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    uses_signed_urls: Callable[[], bool] = getattr(
        repository, "_is_multipart_download_enabled", lambda: False
    )
    return isinstance(repository, HttpArtifactRepository) and not uses_signed_urls()


def _starts_at(response: Any, offset: int) -> bool:
    return str(response.headers.get("content-range", "")).startswith(f"bytes {offset}-")


def _validator(response: Any) -> str | None:
    """Return what identifies the content of a response for `If-Range`; None if nothing reliable does."""
    if "content-encoding" in response.headers:
        return None
    tag = response.headers.get("etag", "")
    return tag if tag.startswith('"') else None
