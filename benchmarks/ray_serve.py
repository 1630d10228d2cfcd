"""Heavy models on one and two instances on Ray, compared with plain fronts, and the effect of crashes."""

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
_MODELS = {overload.NAME: "20 ms per request, without CPU", heavy.CPU_BOUND: "20 ms of CPU per batch"}
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
    """A heavy model under load in one round: in model processes of one front, or on instances on Ray."""

    system: str
    count: int
    model: str
    measured: LoadResult


@dataclass(frozen=True, slots=True)
class Disruption:
    """Effect of an event on clients: successful, failed and wrong calls, and the longest pause."""

    event: str
    succeeded: int
    failed: int
    wrong: int
    pause: float
    """Maximum seconds without a successful call."""
    seconds: float
    """Seconds from the event until `/ready` reports that it is over."""


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements."""

    runs: list[LoadRun]
    disruptions: list[Disruption]


class Clients:
    """Clients that send one request at a time, without retries, and check each prediction."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, Event()
        self.succeeded: list[tuple[float, int]] = []
        """Time and version of each successful call."""
        self.failed: list[str] = []
        self.wrong: list[str] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Send requests while the block runs."""
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
        """Run an event, and return its effect on the clients."""
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
            while not self._stop.wait(0.002):  # leaves CPU time for other processes
                x = float(numbers.randrange(1000))
                try:
                    response = orjson.loads(client.request(orjson.dumps({"x": x})))
                except (UnexpectedStatus, HTTPException, OSError) as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                    continue
                version = int(response["model"]["version"])
                self.succeeded.append((time.monotonic(), version))
                if response["prediction"] != x * soak.FACTORS[version - 1]:
                    self.wrong.append(f"{x:g} returned {response}")


def measure(folder: Path, rounds: int, seconds: float, progress: Callable[[str], None]) -> Results:
    """Measure heavy models in turn, round by round; then promote and kill while clients send requests.

    Raises:
        NotStarted: A service or a cluster does not start.
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
                progress(f"round {number + 1}: {count} instances")
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
            ("an instance is killed", kill_replica),
            ("a node is killed", kill_node),
        ):
            wait_until(lambda: len(cluster.ready().get("replicas", ())) == 2)
            progress(event)
            yield clients.observe(event, act)


def show(results: Results, out: Console) -> None:
    """Print the results."""
    report.show(_tables(results), out)


def markdown(results: Results) -> str:
    """Return the section of `RESULTS.md`."""
    return report.markdown("On Ray: `python -m benchmarks ray`", _tables(results))


def raw(results: Results) -> dict[str, Any]:
    """Return all measurements for JSON."""
    return asdict(results)


def failures(results: Results) -> int:
    """Return the number of failed requests without a kill, plus the number of wrong predictions."""
    failed = sum(run.measured.failed for run in results.runs)
    return failed + sum(
        disruption.wrong + disruption.failed * ("killed" not in disruption.event)
        for disruption in results.disruptions
    )


def ratios(results: Results, system: str, count: int, model: str) -> list[float]:
    """Return the ratios of requests per second to the plain front with one model process, round by round."""
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
        f"wrk with {_CONNECTIONS} connections, all on one machine. Plain: one front with this number of "
        "model processes. Ray: this number of instances with one model process, on separate nodes, behind "
        "one proxy. The ratio is to the plain front with one model process in the same round."
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
        f"{_CLIENTS} clients without retries check each prediction; SIGKILL ends an instance or a node. "
        "Seconds are from the event until /ready lists the promoted version on all remaining instances."
    )
    return [
        ReportTable("Heavy models", columns, tuple(lines), (note,)),
        ReportTable(
            "Two instances on two nodes",
            ("event", "succeeded", "failed", "wrong", "longest pause, s", "seconds"),
            tuple(disruptions),
            (disruption_note,),
        ),
    ]
