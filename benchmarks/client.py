"""Clients in Python, for what wrk can't do: answers that are looked at, and requests at a steady rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from multiprocessing import get_context
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 120
_MAX_CONNECTIONS = 64


class UnexpectedStatus(Exception):
    """A request that should have been answered was not."""


class HttpClient:
    """One keep-alive connection, on which each request waits for the answer to the one before."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        self._path = at.path
        self._connection = HTTPConnection(at.hostname or "", at.port, timeout=_TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def request(self, body: bytes | None = None) -> bytes:
        """The answer to a POST of JSON; without a body, to a GET.

        Raises:
            Refused: its status is not 200.
        """
        headers = {"Content-Type": "application/json"} if body else {}
        self._connection.request("POST" if body else "GET", self._path, body, headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise UnexpectedStatus(f"{self._path} answers {response.status}: {text[:500]!r}")
        return text


def repeat(call: Callable[[], object], seconds: float, at_least: int = 3) -> float:
    """Seconds that one call takes, on average over those that fit in `seconds`."""
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or calls < at_least:
        call()
        calls += 1
    return spent / calls


@contextmanager
def repeated_requests(url: str, body: bytes) -> Iterator[list[float]]:
    """Send this body again and again in the background; gives the seconds each answer took, as they come."""
    seconds: list[float] = []
    stop = Event()

    def run() -> None:
        with HttpClient(url) as client:
            while not stop.is_set():
                began = time.perf_counter()
                client.request(body)
                seconds.append(time.perf_counter() - began)

    thread = Thread(target=run)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds that requests at a steady rate took: half, 99 of 100 and all of them at most."""

    p50: float
    p99: float
    worst: float


def probe(url: str, rate: float, seconds: float, body: bytes | None = None) -> Latencies:
    """Ask this often a second, whether what was asked before is answered or not.

    What takes long delays nothing behind it, as if each request came from a client of its own.
    """
    clients: SimpleQueue[HttpClient] = SimpleQueue()
    milliseconds: list[float] = []

    def request(due: float) -> None:
        client = clients.get()
        client.request(body)
        milliseconds.append((time.perf_counter() - due) * 1e3)
        clients.put(client)

    with ExitStack() as stack, ThreadPoolExecutor(_MAX_CONNECTIONS) as threads:
        for _ in range(_MAX_CONNECTIONS):
            clients.put(stack.enter_context(HttpClient(url)))
        began = time.perf_counter()
        pending = []
        for number in range(round(rate * seconds)):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            # How late this process wakes up is nothing that the service could help.
            pending.append(threads.submit(request, time.perf_counter()))
        for future in pending:
            future.result()
    return summary(milliseconds)


def summary(milliseconds: list[float]) -> Latencies:
    """The percentiles of what was taken, each one that did happen."""
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    return Latencies(ordered[last // 2], ordered[min(last, round(len(ordered) * 0.99))], ordered[last])


class Prober:
    """Runs `probe` in a process of its own, so that it waits for nothing but the answers."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        self._process.submit(time.perf_counter).result()  # it has started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown(cancel_futures=True)

    def start(self, url: str, rate: float, seconds: float, body: bytes | None = None) -> Future[Latencies]:
        """Begin to probe; its result is there after `seconds`."""
        return self._process.submit(probe, url, rate, seconds, body)
