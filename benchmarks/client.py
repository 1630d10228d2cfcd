"""HTTP clients in Python for measurements that wrk cannot do: checked responses and constant rates."""

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
    """Raised when the status of a response is not 200."""


class HttpClient:
    """One keep-alive connection that sends one request at a time."""

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
        """Return the body of the response to a POST of JSON, or to a GET if there is no body.

        Raises:
            UnexpectedStatus: The status is not 200.
        """
        headers = {"Content-Type": "application/json"} if body else {}
        self._connection.request("POST" if body else "GET", self._path, body, headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise UnexpectedStatus(f"{self._path} returned {response.status}: {text[:500]!r}")
        return text


def repeat(call: Callable[[], object], seconds: float, at_least: int = 3) -> float:
    """Return the mean seconds per call, over all calls that fit into `seconds`."""
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or calls < at_least:
        call()
        calls += 1
    return spent / calls


@contextmanager
def repeated_requests(url: str, body: bytes) -> Iterator[list[float]]:
    """Send a body repeatedly in the background; yield the list that collects the seconds of each response."""
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
    """Median, 99th percentile and maximum of request latencies, in milliseconds."""

    p50: float
    p99: float
    worst: float


def probe(url: str, rate: float, seconds: float, body: bytes | None = None) -> Latencies:
    """Send requests at a constant rate, without waiting for earlier responses.

    A slow response delays no later request, as if each request had its own client.
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
            # The latency starts now: a late wake-up of this process must not count against the service.
            pending.append(threads.submit(request, time.perf_counter()))
        for future in pending:
            future.result()
    return summary(milliseconds)


def summary(milliseconds: list[float]) -> Latencies:
    """Return the percentiles of latencies; each one is a measured value, not an interpolated one."""
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    return Latencies(ordered[last // 2], ordered[min(last, round(len(ordered) * 0.99))], ordered[last])


class Prober:
    """Run `probe` in its own process, where no other work delays it."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        self._process.submit(time.perf_counter).result()  # waits until the process has started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown(cancel_futures=True)

    def start(self, url: str, rate: float, seconds: float, body: bytes | None = None) -> Future[Latencies]:
        """Start a probe; its future is done after `seconds`."""
        return self._process.submit(probe, url, rate, seconds, body)
