"""Downloads the files of a version, and resumes after interruptions.

MLflow's own download gives up at the first interruption, and applies the short timeout of registry calls to
the first byte of a file. A server that fetches a file from a bucket first may need minutes for that byte.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from serving.backoff import Backoff
from serving.errors import ArtifactsMissing, RegistryUnavailable, ServingError
from serving.registry import blocking_calls, bounded_http
from serving.registry.mlflow_errors import is_transient

log = logging.getLogger("serving.store")
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


def download(open_repository: Callable[[], Any], folder: Path, stall_seconds: float) -> Path:
    """Download all files of an artifact repository into `folder`; return the folder.

    A file that is interrupted is continued where the server supports it, and otherwise downloaded again,
    until nothing was received for `stall_seconds`.

    Args:
        open_repository: Returns MLflow's repository of the artifacts.
        folder: The folder to create.
        stall_seconds: The maximum number of seconds without any progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bounded_http.set_timeout(CONNECT_SECONDS, stall_seconds)
    repository = open_repository()
    transfer = _Transfer(folder, stall_seconds)
    pool = transfer.attach(repository)
    try:
        path = Path(repository.download_artifacts("", str(folder)))
    except Exception:
        if not transfer.failure:
            raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if transfer.failure:  # MLflow reports the failures of files as one text, without their causes
        raise transfer.failure
    if not any(folder.iterdir()):
        raise ArtifactsMissing("the artifact store has no files of this version: log the model again")
    return path


class _Transfer:
    """One download of all files of a version: what they received, and when one of them is abandoned."""

    def __init__(self, folder: Path, stall_seconds: float) -> None:
        self._folder, self._stall_seconds = folder, stall_seconds
        self._progressed_at, self._has_progressed = time.monotonic(), False
        self.failure: Exception | None = None
        """The first failure of a file that is not retried."""

    def attach(self, repository: Any) -> ThreadPoolExecutor:
        """Make MLflow's artifact repository download and list with retries; return its new threads."""
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        fetch, listed = repository._download_file, repository.list_artifacts
        if isinstance(repository, HttpArtifactRepository) and not _uses_presigned_urls(repository):
            files: dict[str, _HttpFile] = {}

            def fetch(remote_file_path: str, local_path: str) -> None:
                file = files.setdefault(local_path, _HttpFile(repository, remote_file_path, Path(local_path)))
                file.receive(self)

        def fetch_retried(remote_file_path: str, local_path: str) -> None:
            try:
                self._retried(remote_file_path, lambda: fetch(remote_file_path, local_path))
            except Exception as error:
                self.failure = self.failure or error
                raise
            self.progress()

        repository._download_file = fetch_retried
        repository.list_artifacts = lambda path=None: self._retried(path or "", lambda: listed(path))
        # The name shows that the threads may be abandoned.
        name, timeouts = blocking_calls.thread_name("download"), (CONNECT_SECONDS, self._stall_seconds)
        pool = ThreadPoolExecutor(_MAX_THREADS, name, bounded_http.set_timeout, timeouts)
        repository.thread_pool = pool
        return pool

    @property
    def left(self) -> float:
        """Return the seconds until the transfer stalls."""
        return self._progressed_at + self._stall_seconds - time.monotonic()

    def progress(self) -> None:
        """Record that something was received."""
        self._progressed_at, self._has_progressed = time.monotonic(), True

    def check_wanted(self) -> None:
        """Stop the transfer if its folder was deleted: it was abandoned."""
        if not self._folder.exists():
            raise RegistryUnavailable("the download was abandoned")

    def _retried(self, name: str, call: Callable[[], T]) -> T:
        failures = 0
        while True:
            self.check_wanted()
            try:
                result = call()
            except ServingError:
                raise
            except Exception as error:
                failures += 1
                if not is_transient(error) or self.left <= 0:
                    raise
                if not self._has_progressed and failures >= _MAX_ATTEMPTS_BEFORE_PROGRESS:
                    raise
                log.info("the download of %r was interrupted, and continues: %s", name, error)
                time.sleep(min(_BACKOFF.delay(failures - 1), max(self.left, 0)))
            else:
                self._progressed_at = time.monotonic()
                return result


class _PartRefused(Exception):
    """The server cannot continue a file; the next attempt starts it again."""


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
        timeout = (CONNECT_SECONDS, max(transfer.left, 1.0))
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
                reason = f"was interrupted {_MAX_STARTS} times, and its server cannot continue it"
                raise RegistryUnavailable(f"the download of {self._remote!r} {reason}")
            self._validator = _validator(response)
            self._write(response, "ab" if is_continued else "wb", transfer)

    def _write(self, response: Any, mode: str, transfer: _Transfer) -> None:
        with self._local.open(mode, buffering=0) as file:
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                transfer.check_wanted()
                file.write(chunk)
                transfer.progress()


def _uses_presigned_urls(repository: Any) -> bool:
    """Return whether MLflow downloads the files from their bucket, in chunks that it retries itself."""
    enabled: Callable[[], bool] = getattr(repository, "_is_multipart_download_enabled", lambda: False)
    return enabled()


def _starts_at(response: Any, offset: int) -> bool:
    return str(response.headers.get("content-range", "")).startswith(f"bytes {offset}-")


def _validator(response: Any) -> str | None:
    """Return what identifies the content of a response for `If-Range`; None if nothing reliable does."""
    if "content-encoding" in response.headers:
        return None
    tag = response.headers.get("etag", "")
    return tag if tag.startswith('"') else None
