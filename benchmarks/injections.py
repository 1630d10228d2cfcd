"""Faults that the soak injects into a running service; the numbers are those of the table of faults."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks import processes

CLONE, SLOW = -44.0, -47.0
"""Inputs at which the model clones a process as its sibling, and takes 0.3 s."""
_SECONDS_WITHOUT_DESCRIPTORS = 2.0
_SHORT_REQUESTS = 6


class Injections:
    """Injects one fault at a time into a service that serves one model.

    Args:
        url: the address of the service.
        client: a client of its registry.
        name: the model.
        folder: where versions with broken artifacts are made.
    """

    def __init__(self, url: str, client: Any, name: str, folder: Path) -> None:
        self._url, self._client, self._name, self._folder = url, client, name, folder
        self._front = processes.front(int(url.rpartition(":")[2]))
        self._kept = ExitStack()
        self._made: dict[str, str] = {}

    def close(self) -> None:
        """Close what injected faults have left open."""
        self._kept.close()

    @property
    def all(self) -> dict[str, Callable[[], str | None]]:
        """Return the injections by name; each returns the version that it has promoted, if any."""
        return {
            "40: MLmodel nested without end": self.promote_nested_mlmodel,
            "44: fork server reaps a foreign child": self.clone_sibling,
            "45: no descriptors left, a model process killed": self.exhaust_descriptors,
            "47: callers with short timeouts": self.send_short_timeouts,
            "48: reader of a stream that stalls": self.stall_reader,
            "50: artifact source that never responds": self.promote_silent_source,
            "58: fork server stopped": self.stop_fork_server,
        }

    def promote_nested_mlmodel(self) -> str:
        """Promote a version whose MLmodel is nested 100,000 levels deep."""
        folder = self._folder / "nested"
        if not folder.exists():
            source = self._client.get_model_version_download_uri(self._name, "1")
            import mlflow

            shutil.copytree(mlflow.artifacts.download_artifacts(source), folder)
            (folder / "MLmodel").write_text("[" * 100_000)
        return self._promote(str(folder))

    def promote_silent_source(self) -> str:
        """Promote a version whose artifacts are on a server that accepts connections and sends nothing."""
        if "silent" not in self._made:
            silent = self._kept.enter_context(socket.create_server(("127.0.0.1", 0)))
            self._made["silent"] = f"http://127.0.0.1:{silent.getsockname()[1]}/model"
        return self._promote(self._made["silent"])

    def clone_sibling(self) -> None:
        """Have the model clone a process whose parent is the fork server."""
        httpx.post(f"{self._url}/predict", json={"x": CLONE}, timeout=60)

    def exhaust_descriptors(self) -> None:
        """Let the front open no file for a while, and kill the model processes meanwhile."""
        with without_descriptors(self._front):
            for pid in processes.children(processes.fork_server(self._front)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_SECONDS_WITHOUT_DESCRIPTORS)

    def send_short_timeouts(self) -> None:
        """Send requests that can't be answered within the time that they set."""
        for _ in range(_SHORT_REQUESTS):
            httpx.post(
                f"{self._url}/predict", json={"x": SLOW}, headers={"X-Request-Timeout": "0.1"}, timeout=60
            )

    def stall_reader(self) -> None:
        """Ask for a stream that is larger than all buffers, and read none of it."""
        at = urlsplit(self._url)
        connection = self._kept.enter_context(socket.create_connection((at.hostname or "", at.port or 80)))
        body = b'{"x": 1.0}'
        head = f"POST /predict/stream HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def stop_fork_server(self) -> None:
        """Stop the fork server by a signal, and wait until another has taken its place."""
        stopped = processes.fork_server(self._front)
        os.kill(stopped, signal.SIGSTOP)
        while self._fork_server() in (0, stopped):
            time.sleep(0.1)

    def _fork_server(self) -> int:
        with suppress(ValueError, OSError):
            return processes.fork_server(self._front)
        return 0

    def _promote(self, source: str) -> str:
        if source not in self._made:
            self._made[source] = str(self._client.create_model_version(self._name, source).version)
        self._client.transition_model_version_stage(self._name, self._made[source], "Production", True)
        return self._made[source]


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no more files while the block runs."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    lowest = min(set(range(65536)) - {int(each) for each in os.listdir(f"/proc/{pid}/fd")})
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
