"""Many models in one front, and many idle connections: memory, start, promotion and latency."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from benchmarks import processes, report, servers
from benchmarks.processes import Memory
from benchmarks.promotion import more_versions, registry_client, seconds_to_live
from benchmarks.report import ReportTable, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

IDLE = 5000
_CONNECTIONS = 64
_PROMOTIONS = 3
_SPARE_FILES = 200
_IDLE_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Front:
    """One front with this many models, in one round.

    `cold` and `warm` are the seconds of a start without and with the artifacts in its store. `idle_cpu` is
    the number of cores that the front uses without requests. `promotions` are the seconds of each promotion
    to live.
    """

    models: int
    cold: float
    warm: float
    idle_cpu: float
    memory: Memory
    first: LoadResult
    spread: LoadResult
    promotions: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """Busy connections alone, and next to idle ones, in one round.

    `silent` counts the idle connections that stayed open without a request. After one request on each, `kept`
    counts those that stay open for `_IDLE_SECONDS` more.
    """

    alone: LoadResult
    beside: LoadResult
    opened: int
    silent: int
    kept: int


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements; `files` is the number of files that this process may open."""

    fronts: list[Front]
    idle: list[Idle]
    files: int


def measure(folder: Path, counts: Sequence[int], rounds: int, seconds: float, idle: int = IDLE) -> Results:
    """Measure a front with each number of models in turn, round by round.

    Raises:
        NotStarted: A service does not start, or a version does not go live.
    """
    registry = make_registry(folder)
    client = registry_client(registry)
    names = [f"m{number:02}" for number in range(max(counts))]
    register(client, names)
    fronts, idles, files = [], [], 0
    for number in range(rounds):
        for count in counts:
            place = folder / f"{number}-{count}"
            place.mkdir()
            fronts.append(_front(registry, client, place, names[:count], seconds))
        if idle:
            results, files = _idle(registry, folder, names[:1], seconds, idle)
            idles.append(results)
    return Results(fronts, idles, files)


def show(results: Results, out: Console) -> None:
    """Print the results."""
    report.show(_tables(results), out)


def markdown(results: Results) -> str:
    """Return the section of RESULTS.md."""
    return report.markdown("Many models, many connections", _tables(results))


def raw(results: Results) -> dict[str, Any]:
    """Return all measurements for JSON."""
    return asdict(results)


def failures(results: Results) -> int:
    """Return the total number of failed requests."""
    driven = [run for front in results.fronts for run in (front.first, front.spread)]
    driven += [run for idle in results.idle for run in (idle.alone, idle.beside)]
    return sum(run.failed for run in driven)


def register(client: Any, names: Sequence[str]) -> None:
    """Register and promote the iris model's artifacts, with their digest, under each name."""
    iris = client.get_model_version("iris", "1")
    for name in names:
        client.create_registered_model(name)
        model_id, tags = iris.source.removeprefix("models:/"), {"serving.digest": iris.tags["serving.digest"]}
        client.create_model_version(name, iris.source, iris.run_id, tags=tags, model_id=model_id)
        client.transition_model_version_stage(name, "1", "Production")


# -- fronts with many models


def _front(registry: str, client: Any, folder: Path, names: Sequence[str], seconds: float) -> Front:
    with ExitStack() as stack:
        _, cold = _start(stack, registry, folder, names)
    with ExitStack() as stack:
        url, warm = _start(stack, registry, folder, names)
        pid = processes.front(urlsplit(url).port or 0)
        time.sleep(1)
        used = processes.cpu_seconds(pid)
        time.sleep(seconds)
        idle_cpu = (processes.cpu_seconds(pid) - used) / seconds
        drive(url, ROW, folder, connections=_CONNECTIONS, seconds=1, paths=_paths(names))
        first = drive(url, ROW, folder, connections=_CONNECTIONS, seconds=seconds, paths=_paths(names[:1]))
        spread = drive(url, ROW, folder, connections=_CONNECTIONS, seconds=seconds, paths=_paths(names))
        memory = processes.memory(pid)
        promotions = _promote(client, names[0], f"{url}{_paths(names)[0]}")
    return Front(len(names), cold, warm, idle_cpu, memory, first, spread, promotions)


def _start(stack: ExitStack, registry: str, folder: Path, names: Sequence[str]) -> tuple[str, float]:
    env = {"SERVING_MODELS": ",".join(f"models:/{name}/Production" for name in names)}
    began = time.perf_counter()
    url = stack.enter_context(servers.serving(registry, folder, env=env))
    return url, time.perf_counter() - began


def _paths(names: Sequence[str]) -> list[str]:
    return [f"/models/{name}/predict" for name in names]


def _promote(client: Any, name: str, url: str) -> tuple[float, ...]:
    def promote(version: str) -> None:
        client.transition_model_version_stage(name, version, "Production", True)

    versions = more_versions(client, name, _PROMOTIONS)
    return tuple(seconds_to_live(url, version, promote) for version in versions)


# -- idle connections


def _idle(registry: str, folder: Path, names: Sequence[str], seconds: float, count: int) -> tuple[Idle, int]:
    """Measure with idle connections. The limit of open files rises after the service's start, not before."""
    with ExitStack() as stack:
        url, _ = _start(stack, registry, folder, names)
        files = stack.enter_context(processes.open_files(count + _SPARE_FILES))
        count = min(count, files - _SPARE_FILES)
        drive(url, ROW, folder, connections=_CONNECTIONS, seconds=1, paths=_paths(names))
        alone = drive(url, ROW, folder, connections=_CONNECTIONS, seconds=seconds, paths=_paths(names))
        with _connected(url, count) as idle:
            beside = drive(url, ROW, folder, connections=_CONNECTIONS, seconds=seconds, paths=_paths(names))
            silent = sum(map(is_open, idle))
            responding = [run for run in idle if _responds(run)]
            time.sleep(_IDLE_SECONDS)
            kept = sum(map(is_open, responding))
        return Idle(alone, beside, len(idle), silent, kept), files


@contextmanager
def _connected(url: str, count: int) -> Iterator[list[socket.socket]]:
    at = urlsplit(url)
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((at.hostname or "", at.port or 0), timeout=5))
            for _ in range(count)
        ]


def _responds(idle: socket.socket) -> bool:
    """Return whether a request on the connection succeeds."""
    try:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return idle.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def is_open(idle: socket.socket) -> bool:
    """Return whether the other side has not closed the connection."""
    idle.setblocking(False)
    try:
        return bool(idle.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        idle.settimeout(5)


# -- report


def _tables(results: Results) -> list[ReportTable]:
    return [_front_table(results.fronts), *([_idle_table(results)] if results.idle else [])]


def _front_table(fronts: Sequence[Front]) -> ReportTable:
    figures: dict[str, Callable[[Front], float]] = {
        "cold start to ready, s": lambda front: front.cold,
        "second start to ready, s": lambda front: front.warm,
        "promotion to live, s": lambda front: median(front.promotions),
        "a model process, median: private MB": lambda front: median(front.memory.models),
        "a model process, max: private MB": lambda front: max(front.memory.models),
        "the front: private MB": lambda front: front.memory.front,
        "the fork server: private MB": lambda front: front.memory.fork_server,
        "total: private MB": lambda front: front.memory.total,
        "the front's CPU while idle, %": lambda front: 100 * front.idle_cpu,
        "first model: requests/s": lambda front: front.first.rate,
        "first model: p99 ms": lambda front: front.first.p99,
        "spread over all: requests/s": lambda front: front.spread.rate,
        "spread over all: p99 ms": lambda front: front.spread.p99,
    }
    counts = sorted({front.models for front in fronts})
    lines = [
        (name, *(range_of([of(front) for front in fronts if front.models == count]) for count in counts))
        for name, of in figures.items()
    ]
    notes = (
        f"wrk with {_CONNECTIONS} connections; memory is read after the requests. A promotion is to a stage, "
        "which the front polls every second.",
    )
    columns = ("", *(f"{count} model{'s' * (count > 1)}" for count in counts))
    return ReportTable("Models in one front", columns, tuple(lines), notes)


def _idle_table(results: Results) -> ReportTable:
    alone, beside = [run.alone for run in results.idle], [run.beside for run in results.idle]
    lines = [
        (label, *(range_of([getattr(run, value) for run in rounds]) for rounds in (alone, beside)))
        for label, value in (
            ("requests/s", "rate"),
            ("p50 ms", "p50"),
            ("p99 ms", "p99"),
            ("worst ms", "worst"),
        )
    ]
    opened, silent = (min(getattr(run, name) for run in results.idle) for name in ("opened", "silent"))
    notes = (
        f"{opened:,} idle connections were open; {silent:,} remained after the "
        f"measurement. After one request on each, {min(run.kept for run in results.idle):,} remained open "
        f"for {_IDLE_SECONDS:g} s.",
        f"This process may open {results.files:,} files; the service has its own limit.",
    )
    columns = ("", f"{_CONNECTIONS} busy connections", f"next to {opened:,} idle ones")
    return ReportTable("Idle connections", columns, tuple(lines), notes)
