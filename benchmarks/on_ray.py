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

from benchmarks import heavy, overload, service, sheet, soak
from benchmarks.client import Caller, Refused
from benchmarks.load import Measured, drive
from benchmarks.promotion import registry_client
from benchmarks.rays import Cluster, until
from benchmarks.sheet import Sheet, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.toiler import SECONDS_A_ROW

PLAIN, RAY = "plain front", "Ray Serve"
_MODELS = {overload.NAME: "20 ms a request, none of it CPU", heavy.BURNER: "20 ms of CPU a batch"}
_ROWS = round(0.02 / SECONDS_A_ROW)
_ASKED: dict[str, tuple[str, Any]] = {
    overload.NAME: ("predict/batch", {"rows": [ROW] * _ROWS}),
    heavy.BURNER: ("predict", ROW),
}
_COUNTS = (1, 2)
_CONNECTIONS = 16
_CALLERS = 8
_SECONDS_AROUND = 2.0


@dataclass(frozen=True, slots=True)
class Driven:
    """A heavy model under load in one round: in model processes of one front, or in replicas on Ray."""

    system: str
    count: int
    model: str
    measured: Measured


@dataclass(frozen=True, slots=True)
class Noticed:
    """What callers noticed of an event: how many calls were answered and failed, and the longest pause."""

    event: str
    answered: int
    failed: int
    wrong: int
    pause: float
    """Seconds in which no call was answered, at most."""
    seconds: float
    """From the event to when `/ready` told that it was over."""


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured."""

    driven: list[Driven]
    noticed: list[Noticed]


class Callers:
    """Clients that multiply, one request after the other each, without retries; each answer is checked."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, Event()
        self.answered: list[tuple[float, int]] = []
        """When, and by which version."""
        self.failed: list[str] = []
        self.wrong: list[str] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call while the block runs."""
        threads = [Thread(target=self._call, args=(number,)) for number in range(_CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def notice(self, event: str, act: Callable[[], None]) -> Noticed:
        """What becomes of calls around what happens; the longest pause in seconds."""
        began = len(self.answered), len(self.failed), len(self.wrong)
        time.sleep(_SECONDS_AROUND)
        happened = time.monotonic()
        act()
        seconds = time.monotonic() - happened
        time.sleep(_SECONDS_AROUND)
        times = sorted(at for at, _ in self.answered[began[0] :])
        pause = max(later - earlier for earlier, later in pairwise(times))
        return Noticed(
            event, len(times), len(self.failed) - began[1], len(self.wrong) - began[2], pause, seconds
        )

    def _call(self, number: int) -> None:
        numbers = Random(number)
        with Caller(f"{self._url}/predict") as caller:
            while not self._stop.wait(0.002):  # it leaves the machine time for something else than calls
                x = float(numbers.randrange(1000))
                try:
                    told = orjson.loads(caller.ask(orjson.dumps({"x": x})))
                except (Refused, HTTPException, OSError) as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                    continue
                version = int(told["model"]["version"])
                self.answered.append((time.monotonic(), version))
                if told["prediction"] != x * soak.FACTORS[version - 1]:
                    self.wrong.append(f"{x:g} gave {told}")


def measure(folder: Path, rounds: int, seconds: float, tell: Callable[[str], None]) -> Found:
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
    found = Found([], [])
    env = {
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SERVING_MODELS": ",".join(f"models:/{name}/Production" for name in (soak.NAME, *_MODELS)),
        "SERVING_PROBATION_SECONDS": "0",
        "SERVING_STORE_DIR": str(folder / "store"),
    }
    with ExitStack() as stack:
        tell("starting two Ray nodes")
        cluster = stack.enter_context(Cluster(folder, env))
        plain = {count: stack.enter_context(_plain(registry, folder, count, env)) for count in _COUNTS}
        for number in range(rounds):
            for count in _COUNTS:
                tell(f"round {number + 1}: {count} replicas")
                cluster.deploy(count)
                for model in _MODELS:
                    for system, url in ((PLAIN, plain[count]), (RAY, cluster.url)):
                        found.driven.append(_drive(system, count, model, url, folder, seconds))
        found.noticed.extend(_notice(cluster, registry, tell))
    return found


def _plain(registry: str, folder: Path, count: int, env: dict[str, str]) -> Any:
    place = folder / f"processes-{count}"
    place.mkdir()
    return service.serving(
        registry, place, env={**env, "SERVING_REPLICAS": str(count), "SERVING_STORE_DIR": str(place)}
    )


def _drive(system: str, count: int, model: str, url: str, folder: Path, seconds: float) -> Driven:
    path, body = _ASKED[model]
    predict = f"{url}/models/{model}/{path}"
    drive(predict, body, folder, connections=_CONNECTIONS, seconds=1)
    return Driven(
        system, count, model, drive(predict, body, folder, connections=_CONNECTIONS, seconds=seconds)
    )


def _notice(cluster: Cluster, registry: str, tell: Callable[[str], None]) -> Iterator[Noticed]:
    client, uri = registry_client(registry), f"models:/{soak.NAME}/Production"

    def have(version: str, count: int) -> bool:
        told = cluster.ready()
        found = [each["models"].get(uri) for each in told.get("replicas", ())]
        return found == [version] * count and bool(told["replicas_agree"])

    def promote() -> None:
        client.transition_model_version_stage(soak.NAME, "2", "Production", True)
        until(lambda: have("2", 2))

    def kill_replica() -> None:
        (replica,) = cluster.worker.replicas
        os.kill(replica, signal.SIGKILL)
        until(lambda: have("2", 1))

    def kill_node() -> None:
        cluster.worker.kill()
        until(lambda: have("2", 1))

    callers = Callers(cluster.url)
    with callers.calling():
        for event, act in (
            ("a promotion", promote),
            ("a replica is killed", kill_replica),
            ("a node is killed", kill_node),
        ):
            until(lambda: len(cluster.ready().get("replicas", ())) == 2)
            tell(event)
            yield callers.notice(event, act)


def show(found: Found, out: Console) -> None:
    """Print what was found."""
    sheet.show(_sheets(found), out)


def markdown(found: Found) -> str:
    """The section of `RESULTS.md`."""
    return sheet.markdown("On Ray: `python -m benchmarks ray`", _sheets(found))


def raw(found: Found) -> dict[str, Any]:
    """All measurements, for JSON."""
    return asdict(found)


def failures(found: Found) -> int:
    """How many requests failed that nothing was killed under, and how many were answered wrongly."""
    failed = sum(each.measured.failed for each in found.driven)
    return failed + sum(each.wrong + each.failed * ("killed" not in each.event) for each in found.noticed)


def ratios(found: Found, system: str, count: int, model: str) -> list[float]:
    """Requests a second, to those of the plain front with one model process in the same round."""
    return [
        each.measured.rate / one.measured.rate
        for each, one in zip(_of(found, system, count, model), _of(found, PLAIN, 1, model), strict=True)
    ]


def _of(found: Found, system: str, count: int, model: str) -> list[Driven]:
    return [each for each in found.driven if (each.system, each.count, each.model) == (system, count, model)]


def _sheets(found: Found) -> list[Sheet]:
    lines = []
    for model in _MODELS:
        for system in (PLAIN, RAY):
            for count in _COUNTS:
                driven = _of(found, system, count, model)
                values = [
                    range_of([getattr(each.measured, value) for each in driven])
                    for value in ("rate", "p50", "p99")
                ]
                failed = str(sum(each.measured.failed for each in driven))
                ratio = range_of(ratios(found, system, count, model))
                lines.append((_MODELS[model], system, str(count), *values, ratio, failed))
    columns = ("model", "system", "processes", "requests/s", "p50 ms", "p99 ms", "ratio", "failed")
    note = (
        f"wrk with {_CONNECTIONS} connections, all on one machine. Plain: one front with so many model "
        "processes. Ray: so many replicas, on a node each, with one model process each, behind one proxy of "
        "Ray's. The ratio is to the plain front with one model process in the same round."
    )
    noticed = [
        (
            each.event,
            f"{each.answered:,}",
            str(each.failed),
            str(each.wrong),
            f"{each.pause:.2f}",
            f"{each.seconds:.1f}",
        )
        for each in found.noticed
    ]
    told = (
        f"{_CALLERS} callers without retries, who check each answer; a replica or a node is killed with "
        "SIGKILL. Seconds are from then to when /ready told that all who are left have what was promoted."
    )
    return [
        Sheet("Heavy models", columns, tuple(lines), (note,)),
        Sheet(
            "Two replicas on two nodes",
            ("event", "answered", "failed", "wrong", "longest pause, s", "seconds"),
            tuple(noticed),
            (told,),
        ),
    ]
