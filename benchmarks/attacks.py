"""Attacks on a running service, with the time it takes to recover from each one. `soak` injects them.

The numbers refer to the table of faults, which the tests use in their names (`test_row_40_…`).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks import processes
from benchmarks.models.multiplier import SLOW, STRAY

ENDLESS_STREAM = "endless-stream"
DEADLINE_SECONDS = 10.0
"""Deadline of the service under attack. It disconnects a client that does not read for this long."""
_MAX_SECONDS = 60.0
_OUTAGE_SECONDS = 2.0
_HELD_CONNECTIONS = 40


class NotRecovered(Exception):
    """Raised when the service does not recover in time."""


@dataclass
class Recoveries:
    """Seconds from each attack to the first correct response, by attack."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def after(self, attack: str) -> Iterator[None]:
        """Measure the block, which waits until the service has recovered."""
        began = time.monotonic()
        yield
        self.seconds.setdefault(attack, []).append(time.monotonic() - began)


class Attacks:
    """Attack one service.

    Args:
        url: Address of the service.
        name: Registered model to promote versions of.
        promote: Function that puts a version of the model into Production.
    """

    def __init__(self, url: str, name: str, promote: Callable[[str], None]) -> None:
        self.recoveries = Recoveries()
        self._url, self._name, self._promote = url, name, promote
        self._front = processes.front(int(url.rpartition(":")[2]))

    def bad_file(self, version: str, live: str) -> None:
        """Promote a version whose `MLmodel` is nested 100,000 levels deep (row 40)."""
        self._promote(version)
        with self.recoveries.after("40: nested MLmodel"):
            self._wait_until_model(lambda model: (model["candidate"] or {}).get("state") == "rejected")
        self._promote(live)
        self._wait_until_model(lambda model: model["candidate"] is None)

    def stray_child(self) -> None:
        """Make the fork server reap a process that it did not start, then kill a model process (row 44)."""
        self._predict(STRAY)
        for pid in self._models():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with self.recoveries.after("44: a child that is not the fork server's"):
            self._wait_until_predicts(self._name)

    def no_descriptors(self) -> None:
        """Exhaust the front's file descriptors while a model process dies (row 45)."""
        before = resource.prlimit(self._front, resource.RLIMIT_NOFILE)
        opened = len(os.listdir(f"/proc/{self._front}/fd"))
        with ExitStack() as stack:
            resource.prlimit(
                self._front, resource.RLIMIT_NOFILE, (opened + _HELD_CONNECTIONS // 2, before[1])
            )
            for _ in range(_HELD_CONNECTIONS):
                with suppress(OSError):
                    stack.enter_context(socket.create_connection(self._address, timeout=1))
            for pid in self._models():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_OUTAGE_SECONDS)
            resource.prlimit(self._front, resource.RLIMIT_NOFILE, before)
        with self.recoveries.after("45: no file descriptors, and a crash"):
            self._wait_until_predicts(self._name)

    def short_deadlines(self, live: str) -> None:
        """Send requests whose own deadline expires, right after a promotion (row 47)."""
        for _ in range(6):
            self._predict(SLOW, {"X-Request-Timeout": "0.05"})
        with self.recoveries.after("47: short deadlines of clients"):
            self._wait_until_model(lambda model: model["version"] == live and model["candidate"] is None)

    def stalled_reader(self) -> None:
        """Open an endless stream and read nothing from it (row 48)."""
        body = b'{"x": 1}'
        head = f"POST /models/{ENDLESS_STREAM}/predict/stream HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(self._address)
            stalled.sendall(head.encode() + body)
            with self.recoveries.after("48: a stream without a reader"):
                self._wait_until_predicts(ENDLESS_STREAM)

    def silent_source(self, version: str, live: str) -> None:
        """Promote a version whose artifact source never responds, then another version (row 50)."""
        self._promote(version)
        self._wait_until_model(lambda model: (model["candidate"] or {}).get("version") == version)
        self._promote(live)
        with self.recoveries.after("50: a source that never responds"):
            self._wait_until_model(lambda model: model["version"] == live and model["candidate"] is None)

    @property
    def _address(self) -> tuple[str, int]:
        at = urlsplit(self._url)
        return at.hostname or "", at.port or 0

    def _models(self) -> list[int]:
        with suppress(ValueError, OSError):
            return processes.children(processes.fork_server(self._front))
        return []

    def _predict(self, x: float, headers: dict[str, str] | None = None, name: str = "") -> int:
        path = f"{self._url}/models/{name or self._name}/predict"
        return httpx.post(path, json={"x": x}, headers=headers, timeout=_MAX_SECONDS).status_code

    def _wait_until_predicts(self, name: str) -> None:
        self._wait(lambda: self._predict(1.0, name=name) == 200)

    def _wait_until_model(self, condition: Callable[[dict[str, Any]], object]) -> None:
        self._wait(lambda: condition(httpx.get(f"{self._url}/ready", timeout=30).json()["models"][0]))

    def _wait(self, done: Callable[[], object]) -> None:
        ends = time.monotonic() + _MAX_SECONDS
        while time.monotonic() < ends:
            with suppress(httpx.TransportError):
                if done():
                    return
            time.sleep(0.02)
        raise NotRecovered(f"it did not recover within {_MAX_SECONDS:g} s")


class _Silent(BaseHTTPRequestHandler):
    """Accept requests and never respond."""

    ended = Event()

    def do_GET(self) -> None:
        self.ended.wait()


@contextmanager
def silent_source() -> Iterator[str]:
    """Run an artifact server that never responds; yield the URI of artifacts on it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/api/2.0/mlflow-artifacts/artifacts/model"
    finally:
        _Silent.ended.set()
        server.shutdown()
        server.server_close()
