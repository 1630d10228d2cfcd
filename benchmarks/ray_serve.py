"""On Ray: heavy models in one and two replicas, beside plain fronts, and what callers notice of deaths."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import orjson
from rich.console import Console

from benchmarks import heavy, overload, report, servers, soak
from benchmarks.client import HttpClient, UnexpectedStatus
from benchmarks.models.fixed_latency import SECONDS_PER_ROW
from benchmarks.promotion import registry_client
from benchmarks.ray_cluster import Cluster, wait_until
from benchmarks.report import ReportTable, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

PLAIN, RAY = "plain front", "Ray Serve"
_MODELS = {overload.NAME: "20 ms a request, none of it CPU", heavy.CPU_BOUND: "20 ms of CPU a batch"}
_ROWS = round(0.02 / SECONDS_PER_ROW)
_REQUESTS: dict[str, tuple[str, Any]] = {
    overload.NAME: ("predict/batch", {"rows": [ROW] * _ROWS}),
    heavy.CPU_BOUND: ("predict", ROW),
}
_COUNTS = (1, 2)
_CONNECTIONS = 16
_CLIENTS = 8
_MARGIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LoadRun:
    """A heavy model under load in one round: in model processes of one front, or in replicas on Ray."""

    system: str
    count: int
    model: str
    measured: LoadResult


@dataclass(frozen=True, slots=True)
class Disruption:
    """What callers noticed of an event: how many calls were answered and failed, and the longest pause."""

    event: str
    succeeded: int
    failed: int
    wrong: int
    pause: float
    """Seconds in which no call was answered, at most."""
    seconds: float
    """From the event to when `/ready` told that it was over."""


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    runs: list[LoadRun]
    disruptions: list[Disruption]


class Clients:
    """Clients that multiply, one request after the other each, without retries; each answer is checked."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, Event()
        self.succeeded: list[tuple[float, int]] = []
        """When, and by which version."""
        self.failed: list[str] = []
        self.wrong: list[str] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call while the block runs."""
        threads = [Thread(target=self._call, args=(number,)) for number in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def observe(self, event: str, act: Callable[[], None]) -> Disruption:
        """What becomes of calls around what happens; the longest pause in seconds."""
        began = len(self.succeeded), len(self.failed), len(self.wrong)
        time.sleep(_MARGIN_SECONDS)
        happened = time.monotonic()
        act()
        seconds = time.monotonic() - happened
        time.sleep(_MARGIN_SECONDS)
        times = sorted(at for at, _ in self.succeeded[began[0] :])
        pause = max(later - earlier for earlier, later in pairwise(times))
        return Disruption(
            event, len(times), len(self.failed) - began[1], len(self.wrong) - began[2], pause, seconds
        )

    def _call(self, number: int) -> None:
        numbers = Random(number)
        with HttpClient(f"{self._url}/predict") as client:
            while not self._stop.wait(0.002):  # it leaves the machine time for something else than calls
                x = float(numbers.randrange(1000))
                try:
                    response = orjson.loads(client.request(orjson.dumps({"x": x})))
                except (UnexpectedStatus, HTTPException, OSError) as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                    continue
                version = int(response["model"]["version"])
                self.succeeded.append((time.monotonic(), version))
                if response["prediction"] != x * soak.FACTORS[version - 1]:
                    self.wrong.append(f"{x:g} gave {response}")


def measure(folder: Path, rounds: int, seconds: float, progress: Callable[[str], None]) -> Results:
    """Drive heavy models in turn, round by round; then promote and kill under callers.

    Raises:
        NotStarted: a service or a cluster does not start.
    """
    registry = make_registry(folder)
    heavy.register(registry)
    overload.register(registry)
    soak.register(folder)
    client = registry_client(registry)
    for name in (soak.NAME, overload.NAME):
        client.transition_model_version_stage(name, "1", "Production")
    results = Results([], [])
    env = {
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SERVING_MODELS": ",".join(f"models:/{name}/Production" for name in (soak.NAME, *_MODELS)),
        "SERVING_PROBATION_SECONDS": "0",
        "SERVING_STORE_DIR": str(folder / "store"),
    }
    with ExitStack() as stack:
        progress("starting two Ray nodes")
        cluster = stack.enter_context(Cluster(folder, env))
        plain = {count: stack.enter_context(_plain(registry, folder, count, env)) for count in _COUNTS}
        for number in range(rounds):
            for count in _COUNTS:
                progress(f"round {number + 1}: {count} replicas")
                cluster.deploy(count)
                for model in _MODELS:
                    for system, url in ((PLAIN, plain[count]), (RAY, cluster.url)):
                        results.runs.append(_run_load(system, count, model, url, folder, seconds))
        results.disruptions.extend(_disruptions(cluster, registry, progress))
    return results


def _plain(registry: str, folder: Path, count: int, env: dict[str, str]) -> Any:
    place = folder / f"processes-{count}"
    place.mkdir()
    return servers.serving(
        registry, place, env={**env, "SERVING_REPLICAS": str(count), "SERVING_STORE_DIR": str(place)}
    )


def _run_load(system: str, count: int, model: str, url: str, folder: Path, seconds: float) -> LoadRun:
    path, body = _REQUESTS[model]
    predict = f"{url}/models/{model}/{path}"
    drive(predict, body, folder, connections=_CONNECTIONS, seconds=1)
    return LoadRun(
        system, count, model, drive(predict, body, folder, connections=_CONNECTIONS, seconds=seconds)
    )


def _disruptions(cluster: Cluster, registry: str, progress: Callable[[str], None]) -> Iterator[Disruption]:
    client, uri = registry_client(registry), f"models:/{soak.NAME}/Production"

    def have(version: str, count: int) -> bool:
        readiness = cluster.ready()
        versions = [instance["models"].get(uri) for instance in readiness.get("replicas", ())]
        return versions == [version] * count and bool(readiness["replicas_agree"])

    def promote() -> None:
        client.transition_model_version_stage(soak.NAME, "2", "Production", True)
        wait_until(lambda: have("2", 2))

    def kill_replica() -> None:
        (replica,) = cluster.worker.replicas
        os.kill(replica, signal.SIGKILL)
        wait_until(lambda: have("2", 1))

    def kill_node() -> None:
        cluster.worker.kill()
        wait_until(lambda: have("2", 1))

    clients = Clients(cluster.url)
    with clients.calling():
        for event, act in (
            ("a promotion", promote),
            ("a replica is killed", kill_replica),
            ("a node is killed", kill_node),
        ):
            wait_until(lambda: len(cluster.ready().get("replicas", ())) == 2)
            progress(event)
            yield clients.observe(event, act)


def show(results: Results, out: Console) -> None:
    """Print what was found."""
    report.show(_tables(results), out)


def markdown(results: Results) -> str:
    """The section of `RESULTS.md`."""
    return report.markdown("On Ray: `python -m benchmarks ray`", _tables(results))


def raw(results: Results) -> dict[str, Any]:
    """All measurements, for JSON."""
    return asdict(results)


def failures(results: Results) -> int:
    """How many requests failed that nothing was killed under, and how many were answered wrongly."""
    failed = sum(run.measured.failed for run in results.runs)
    return failed + sum(
        disruption.wrong + disruption.failed * ("killed" not in disruption.event)
        for disruption in results.disruptions
    )


def ratios(results: Results, system: str, count: int, model: str) -> list[float]:
    """Requests a second, to those of the plain front with one model process in the same round."""
    return [
        run.measured.rate / baseline.measured.rate
        for run, baseline in zip(
            _of(results, system, count, model), _of(results, PLAIN, 1, model), strict=True
        )
    ]


def _of(results: Results, system: str, count: int, model: str) -> list[LoadRun]:
    return [run for run in results.runs if (run.system, run.count, run.model) == (system, count, model)]


def _tables(results: Results) -> list[ReportTable]:
    lines = []
    for model in _MODELS:
        for system in (PLAIN, RAY):
            for count in _COUNTS:
                runs = _of(results, system, count, model)
                values = [
                    range_of([getattr(run.measured, value) for run in runs])
                    for value in ("rate", "p50", "p99")
                ]
                failed = str(sum(run.measured.failed for run in runs))
                ratio = range_of(ratios(results, system, count, model))
                lines.append((_MODELS[model], system, str(count), *values, ratio, failed))
    columns = ("model", "system", "processes", "requests/s", "p50 ms", "p99 ms", "ratio", "failed")
    note = (
        f"wrk with {_CONNECTIONS} connections, all on one machine. Plain: one front with so many model "
        "processes. Ray: so many replicas, on a node each, with one model process each, behind one proxy of "
        "Ray's. The ratio is to the plain front with one model process in the same round."
    )
    disruptions = [
        (
            disruption.event,
            f"{disruption.succeeded:,}",
            str(disruption.failed),
            str(disruption.wrong),
            f"{disruption.pause:.2f}",
            f"{disruption.seconds:.1f}",
        )
        for disruption in results.disruptions
    ]
    disruption_note = (
        f"{_CLIENTS} callers without retries, who check each answer; a replica or a node is killed with "
        "SIGKILL. Seconds are from then to when /ready told that all who are left have what was promoted."
    )
    return [
        ReportTable("Heavy models", columns, tuple(lines), (note,)),
        ReportTable(
            "Two replicas on two nodes",
            ("event", "answered", "failed", "wrong", "longest pause, s", "seconds"),
            tuple(disruptions),
            (disruption_note,),
        ),
    ]
