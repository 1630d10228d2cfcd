"""Long-running test with promotions, overload, crashes and attacks; every prediction is checked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import httpx
import orjson
from rich.console import Console

from benchmarks import processes, report, servers
from benchmarks.attacks import DEADLINE_SECONDS, ENDLESS_STREAM, Attacks, silent_source
from benchmarks.client import HttpClient, UnexpectedStatus
from benchmarks.open_loop import send_at_rate
from benchmarks.promotion import registry_client
from benchmarks.report import ReportTable
from benchmarks.throughput import make_registry

NAME = "multiplier"
FACTORS = (1.0, 2.0, 3.0)
BAD_FILE, SILENT = "5", "6"
"""Version numbers after those of `FACTORS` and the broken version."""
_CLIENTS = 4
_TIMEOUT_SECONDS = 60.0
_CRASH_INTERVAL_SECONDS = 35.0
"""The service replaces a process that died young after an increasing delay."""
_MAX_FILES = 500
"""Further files are connections of a burst, which the front closes once their clients have left."""
_BURST_SECONDS, _BURST_RATE = 2.0, 3000.0
# Share of the time that counts as warm-up: growth afterwards would be a leak.
_WARM = 0.25


@dataclass(frozen=True, slots=True)
class Size:
    """Private memory in MB and open files of the front, after this many seconds."""

    seconds: float
    front: float
    fork_server: float
    files: int


@dataclass
class Results:
    """Number of events and outcomes of the calls."""

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    succeeded: int = 0
    rejected: int = 0
    wrong: list[str] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds until the service recovered, by attack."""


class Soak:
    """One service, its clients, and the events injected into it."""

    def __init__(self, url: str, client: Any, numbers: random.Random) -> None:
        self.url, self.results = url, Results()
        self._client, self._numbers = client, numbers
        self._front = processes.front(int(url.rpartition(":")[2]))
        self._live, self._crashed_at = "1", -_CRASH_INTERVAL_SECONDS
        self._overloaded, self._under_attack = Event(), Event()
        self._attacks = Attacks(url, NAME, self._to_production)
        self.results.recoveries = self._attacks.recoveries.seconds

    def run(self, seconds: float, progress: Callable[[str], None]) -> Results:
        """Run events one after the other for this long."""
        actions = [
            self.promote,
            self.promote_broken_version,
            self.kill_model_processes,
            self.kill_fork_server,
            self.overload,
        ]
        actions += [self.attack] * len(actions)
        began = time.monotonic()
        with self._calling():
            while (spent := time.monotonic() - began) < seconds:
                action = self._numbers.choice(actions)
                action()
                self.results.seconds = time.monotonic() - began
                with suppress(ValueError, OSError):  # the fork server has just been killed
                    self.results.sizes.append(self._size(spent))
                progress(
                    f"{spent / 60:.1f} min, {self.results.succeeded:,} calls, {len(self.results.wrong)} wrong"
                )
        return self.results

    def _size(self, spent: float) -> Size:
        fork_server = processes.fork_server(self._front)
        sizes = processes.private(self._front), processes.private(fork_server)
        return Size(spent, *sizes, len(os.listdir(f"/proc/{self._front}/fd")))

    # -- events

    def promote(self) -> None:
        """Promote a working version, which goes live."""
        self._live = self._numbers.choice([str(round(factor)) for factor in FACTORS])
        self._to_production(self._live)
        self._wait_until(lambda model: model["version"] == self._live)
        self.results.done["promotions"] += 1

    def promote_broken_version(self) -> None:
        """Promote a version that cannot load; the version before it stays live."""
        broken = str(len(FACTORS) + 1)
        self._to_production(broken)
        self._wait_until(lambda model: model["candidate"] and model["candidate"]["version"] == broken)
        self._to_production(self._live)
        self._wait_until(lambda model: model["candidate"] is None)
        self.results.done["broken versions"] += 1

    def kill_model_processes(self) -> None:
        """Kill the model processes."""
        self._kill(lambda fork_server: processes.children(fork_server), "processes killed")

    def kill_fork_server(self) -> None:
        """Kill the fork server, and its children with it."""
        self._kill(lambda fork_server: [fork_server], "fork servers killed")

    def overload(self) -> None:
        """Send more requests than the model can handle; the service rejects the excess."""
        self._overloaded.set()
        body = orjson.dumps({"x": 1.0})
        responses = asyncio.run(send_at_rate(f"{self.url}/predict", body, _BURST_RATE, _BURST_SECONDS))
        statuses = Counter(response.status for response in responses)
        self.results.succeeded += statuses[200]
        self.results.rejected += statuses[503]
        self.results.wrong += [f"under load: {status}" for status in statuses if status not in (200, 503)]
        self._overloaded.clear()
        self._wait_until(lambda _: len(os.listdir(f"/proc/{self._front}/fd")) < _MAX_FILES)
        self.results.done["overloads"] += 1

    def attack(self) -> None:
        """Run one of the attacks that were once successful, and wait for the recovery."""
        attacks: list[Callable[[], None]] = [
            lambda: self._attacks.bad_file(BAD_FILE, self._live),
            self._attacks.stray_child,
            self._attacks.no_descriptors,
            self._promote_and_hurry,
            self._attacks.stalled_reader,
            lambda: self._attacks.silent_source(SILENT, self._live),
        ]
        attack = self._numbers.choice(attacks)
        if attack in (self._attacks.stray_child, self._attacks.no_descriptors):
            if time.monotonic() - self._crashed_at < _CRASH_INTERVAL_SECONDS:
                return
            self._crashed_at = time.monotonic()
        self._under_attack.set()
        attack()
        self._wait_until(lambda _: self._accepts_requests())
        self._under_attack.clear()
        self.results.done["attacks"] += 1

    def _accepts_requests(self) -> bool:
        """Return whether the service accepts requests; after slow rows it expects slow calls for a while."""
        statuses = {
            httpx.post(f"{self.url}/predict", json={"x": 1.0}, timeout=30).status_code for _ in range(20)
        }
        return statuses == {200}

    def _promote_and_hurry(self) -> None:
        self.promote()
        self._attacks.short_deadlines(self._live)

    def _kill(self, select: Callable[[int], Sequence[int]], label: str) -> None:
        if time.monotonic() - self._crashed_at < _CRASH_INTERVAL_SECONDS:
            return
        self._crashed_at = time.monotonic()
        fork_server = processes.fork_server(self._front)
        for pid in select(fork_server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.results.done[label] += 1
        self._wait_until(lambda model: model["state"] == "live" and self._models())

    def _models(self) -> Sequence[int]:
        with suppress(ValueError, OSError):
            return processes.children(processes.fork_server(self._front))
        return ()

    def _to_production(self, version: str) -> None:
        self._client.transition_model_version_stage(NAME, version, "Production", True)

    def _wait_until(self, condition: Callable[[dict[str, Any]], object]) -> None:
        ends = time.monotonic() + _TIMEOUT_SECONDS
        while not condition(model := httpx.get(f"{self.url}/ready", timeout=30).json()["models"][0]):
            if time.monotonic() > ends:
                raise servers.NotStarted(f"{model} did not change within {_TIMEOUT_SECONDS:g} s")
            time.sleep(0.02)

    # -- clients

    @contextmanager
    def _calling(self) -> Iterator[None]:
        stop = Event()
        threads = [Thread(target=self._call, args=(number, stop)) for number in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _call(self, number: int, stop: Event) -> None:
        numbers = random.Random(number)
        with HttpClient(f"{self.url}/predict") as client:
            while not stop.is_set():
                x = float(numbers.randrange(1000))
                try:
                    response = orjson.loads(client.request(orjson.dumps({"x": x})))
                except (UnexpectedStatus, HTTPException, OSError) as error:
                    is_busy = self._overloaded.is_set() or self._under_attack.is_set()
                    if any(f"returned {status}" in str(error) for status in (503, 504)) and is_busy:
                        self.results.rejected += 1
                    else:
                        self.results.wrong.append(f"{type(error).__name__}: {error}")
                    continue
                self.results.succeeded += 1
                if response["prediction"] != x * FACTORS[int(response["model"]["version"]) - 1]:
                    self.results.wrong.append(f"{x:g} returned {response}")
                time.sleep(0.002)  # leaves CPU time for other processes


def measure(folder: Path, seconds: float, seed: int, progress: Callable[[str], None]) -> Results:
    """Run the test for this long.

    Raises:
        NotStarted: The service does not start, or a promoted version does not go live.
    """
    registry = make_registry(folder)
    client = registry_client(registry)
    register(folder)
    client.transition_model_version_stage(NAME, "1", "Production")
    env = {
        "SERVING_MODELS": f"models:/{NAME}/Production,models:/{ENDLESS_STREAM}/1",
        "SERVING_PROBATION_SECONDS": "5",
        "SERVING_POLL_SECONDS": "0.2",
        "SERVING_MAX_QUEUE_SECONDS": "0.05",
        "SERVING_DEADLINE_SECONDS": f"{DEADLINE_SECONDS:g}",
    }
    with ExitStack() as stack:
        register_attacks(client, folder, stack.enter_context(silent_source()))
        url = stack.enter_context(servers.serving(registry, folder, env=env))
        return Soak(url, client, random.Random(seed)).run(seconds, progress)


def show(results: Results, out: Console) -> None:
    """Print the results."""
    report.show([_table(results)], out)
    for fault in results.wrong[:20]:
        out.print(f"[red]✗[/] {fault}", soft_wrap=True)


def markdown(results: Results) -> str:
    """Return the section of RESULTS.md."""
    return report.markdown("Soak: `python -m benchmarks soak`", [_table(results)])


def raw(results: Results) -> dict[str, Any]:
    """Return all measurements for JSON; `asdict` would not copy a Counter correctly."""
    return {**vars(results), "done": {**results.done}, "sizes": [asdict(size) for size in results.sizes]}


def failures(results: Results) -> int:
    """Return the number of failed calls and wrong predictions."""
    return len(results.wrong)


def register(folder: Path) -> None:
    """Log a version for each factor and a broken version, in MLflow's current registry."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    mlflow.set_experiment("iris")  # its artifacts are stored in `folder`
    example = pd.DataFrame({"x": [1.0, 2.0]})
    for config in (*({"factor": factor} for factor in FACTORS), {"broken": True}):
        mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(Path(__file__).with_name("models") / "multiplier.py"),
            model_config=config,
            signature=infer_signature(example, [0.0]),
            pip_requirements=["mlflow"],  # otherwise MLflow loads the model once more to infer them
            registered_model_name=NAME,
        )
    mlflow.pyfunc.log_model(
        name=ENDLESS_STREAM,
        python_model=str(Path(__file__).with_name("models") / "endless_stream.py"),
        signature=infer_signature(example, [0.0]),
        pip_requirements=["mlflow"],
        registered_model_name=ENDLESS_STREAM,
    )


def register_attacks(client: Any, folder: Path, source: str) -> None:
    """Register a version with a harmful `MLmodel` file, and one whose source never responds."""
    (folder / "bad").mkdir()
    (folder / "bad" / "MLmodel").write_text("[" * 100_000)
    for version, location in ((BAD_FILE, str(folder / "bad")), (SILENT, source)):
        assert str(client.create_model_version(NAME, location).version) == version


def _table(results: Results) -> ReportTable:
    first = next(size for size in results.sizes if size.seconds >= results.sizes[-1].seconds * _WARM)
    last = results.sizes[-1]
    rows = [("minutes", f"{results.seconds / 60:.1f}")]
    rows += [(what, f"{count:,}") for what, count in sorted(results.done.items())]
    rows += [
        ("successful calls", f"{results.succeeded:,}"),
        ("calls rejected under overload or attack", f"{results.rejected:,}"),
        ("calls that failed or returned a wrong prediction", f"{len(results.wrong):,}"),
        *(
            (f"recovery, s, median / max: {attack}", f"{median(seconds):.1f} / {max(seconds):.1f}")
            for attack, seconds in sorted(results.recoveries.items())
        ),
        ("front, MB: after a quarter of the time / at the end", f"{first.front:.1f} / {last.front:.1f}"),
        ("fork server, MB", f"{first.fork_server:.1f} / {last.fork_server:.1f}"),
        ("open files of the front", f"{first.files} / {last.files}"),
    ]
    return ReportTable("Events and outcomes", ("event", "count"), tuple(rows))
