"""What a service meets in hours, from promotions to overload and attacks; each answer is checked."""

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

from benchmarks import processes, service, sheet
from benchmarks.arrivals import arrive
from benchmarks.attacks import DEADLINE_SECONDS, TALKER, Attacks, silent_source
from benchmarks.client import Caller, Refused
from benchmarks.promotion import registry_client
from benchmarks.sheet import Sheet
from benchmarks.throughput import make_registry

NAME = "multiplier"
FACTORS = (1.0, 2.0, 3.0)
BAD_FILE, SILENT = "5", "6"
"""Versions after those of `FACTORS` and the broken one."""
_CALLERS = 4
_PATIENCE_SECONDS = 60.0
_SECONDS_BETWEEN_CRASHES = 35.0
"""A process that died young is replaced ever more slowly, as it should be."""
_MAX_FILES = 500
"""More files are connections of a burst, which the front closes once it sees that their callers left."""
_BURST_SECONDS, _BURST_RATE = 2.0, 3000.0
# What has grown when the service has warmed up is no leak; before, all of it is.
_WARM = 0.25


@dataclass(frozen=True, slots=True)
class Size:
    """After so many seconds: private memory in MB, and how many files the front has open."""

    seconds: float
    front: float
    fork_server: float
    files: int


@dataclass
class Found:
    """What was done, and what became of the calls meanwhile."""

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds until the service had recovered, by the attack."""


class Soak:
    """One service, its callers, and what is done to it."""

    def __init__(self, url: str, client: Any, numbers: random.Random) -> None:
        self.url, self.found = url, Found()
        self._client, self._numbers = client, numbers
        self._front = processes.front(int(url.rpartition(":")[2]))
        self._live, self._crashed_at = "1", -_SECONDS_BETWEEN_CRASHES
        self._overloaded, self._hurt = Event(), Event()
        self._attacks = Attacks(url, NAME, self._to_production)
        self.found.recoveries = self._attacks.recoveries.seconds

    def run(self, seconds: float, tell: Callable[[str], None]) -> Found:
        """Do one thing after the other for so long."""
        acts = [self.promote, self.promote_a_broken_one, self.crash, self.crash_altogether, self.overload]
        acts += [self.attack] * len(acts)
        began = time.monotonic()
        with self._calling():
            while (spent := time.monotonic() - began) < seconds:
                act = self._numbers.choice(acts)
                act()
                self.found.seconds = time.monotonic() - began
                with suppress(ValueError, OSError):  # a fork server that has just been killed
                    self.found.sizes.append(self._size(spent))
                tell(f"{spent / 60:.1f} min, {self.found.answered:,} answers, {len(self.found.wrong)} wrong")
        return self.found

    def _size(self, spent: float) -> Size:
        fork_server = processes.fork_server(self._front)
        sizes = processes.private(self._front), processes.private(fork_server)
        return Size(spent, *sizes, len(os.listdir(f"/proc/{self._front}/fd")))

    # -- what is done

    def promote(self) -> None:
        """A version that can serve goes live."""
        self._live = self._numbers.choice([str(round(factor)) for factor in FACTORS])
        self._to_production(self._live)
        self._until(lambda model: model["version"] == self._live)
        self.found.done["promotions"] += 1

    def promote_a_broken_one(self) -> None:
        """One that can't serve is refused, and the one before goes on."""
        broken = str(len(FACTORS) + 1)
        self._to_production(broken)
        self._until(lambda model: model["candidate"] and model["candidate"]["version"] == broken)
        self._to_production(self._live)
        self._until(lambda model: model["candidate"] is None)
        self.found.done["broken versions"] += 1

    def crash(self) -> None:
        """The model processes are killed."""
        self._kill(lambda fork_server: processes.children(fork_server), "processes killed")

    def crash_altogether(self) -> None:
        """The fork server is killed, and its processes with it."""
        self._kill(lambda fork_server: [fork_server], "fork servers killed")

    def overload(self) -> None:
        """More requests than can be answered: those must be refused, and no answer be wrong."""
        self._overloaded.set()
        body = orjson.dumps({"x": 1.0})
        arrivals = asyncio.run(arrive(f"{self.url}/predict", body, _BURST_RATE, _BURST_SECONDS))
        statuses = Counter(each.status for each in arrivals)
        self.found.answered += statuses[200]
        self.found.refused += statuses[503]
        self.found.wrong += [f"under load: {status}" for status in statuses if status not in (200, 503)]
        self._overloaded.clear()
        self._until(lambda _: len(os.listdir(f"/proc/{self._front}/fd")) < _MAX_FILES)
        self.found.done["overloads"] += 1

    def attack(self) -> None:
        """One of the attacks that once succeeded, from which the service has to recover."""
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
            if time.monotonic() - self._crashed_at < _SECONDS_BETWEEN_CRASHES:
                return
            self._crashed_at = time.monotonic()
        self._hurt.set()
        attack()
        self._until(lambda _: self._answers())
        self._hurt.clear()
        self.found.done["attacks"] += 1

    def _answers(self) -> bool:
        """Return whether requests are accepted again: slow rows make the service expect more of them."""
        statuses = {
            httpx.post(f"{self.url}/predict", json={"x": 1.0}, timeout=30).status_code for _ in range(20)
        }
        return statuses == {200}

    def _promote_and_hurry(self) -> None:
        self.promote()
        self._attacks.short_deadlines(self._live)

    def _kill(self, chosen: Callable[[int], Sequence[int]], told: str) -> None:
        if time.monotonic() - self._crashed_at < _SECONDS_BETWEEN_CRASHES:
            return
        self._crashed_at = time.monotonic()
        fork_server = processes.fork_server(self._front)
        for pid in chosen(fork_server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.found.done[told] += 1
        self._until(lambda model: model["state"] == "live" and self._models())

    def _models(self) -> Sequence[int]:
        with suppress(ValueError, OSError):
            return processes.children(processes.fork_server(self._front))
        return ()

    def _to_production(self, version: str) -> None:
        self._client.transition_model_version_stage(NAME, version, "Production", True)

    def _until(self, seen: Callable[[dict[str, Any]], object]) -> None:
        ends = time.monotonic() + _PATIENCE_SECONDS
        while not seen(told := httpx.get(f"{self.url}/ready", timeout=30).json()["models"][0]):
            if time.monotonic() > ends:
                raise service.NotStarted(f"it did not come true in {_PATIENCE_SECONDS:g} s: {told}")
            time.sleep(0.02)

    # -- callers

    @contextmanager
    def _calling(self) -> Iterator[None]:
        stop = Event()
        threads = [Thread(target=self._call, args=(number, stop)) for number in range(_CALLERS)]
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
        with Caller(f"{self.url}/predict") as caller:
            while not stop.is_set():
                x = float(numbers.randrange(1000))
                try:
                    told = orjson.loads(caller.ask(orjson.dumps({"x": x})))
                except (Refused, HTTPException, OSError) as error:
                    is_busy = self._overloaded.is_set() or self._hurt.is_set()
                    if any(f"answers {status}" in str(error) for status in (503, 504)) and is_busy:
                        self.found.refused += 1
                    else:
                        self.found.wrong.append(f"{type(error).__name__}: {error}")
                    continue
                self.found.answered += 1
                if told["prediction"] != x * FACTORS[int(told["model"]["version"]) - 1]:
                    self.found.wrong.append(f"{x:g} gave {told}")
                time.sleep(0.002)  # it leaves the machine time for something else than calls


def measure(folder: Path, seconds: float, seed: int, tell: Callable[[str], None]) -> Found:
    """Soak a service for so long.

    Raises:
        NotStarted: the service does not start, or does not come to what was promoted.
    """
    registry = make_registry(folder)
    client = registry_client(registry)
    register(folder)
    client.transition_model_version_stage(NAME, "1", "Production")
    env = {
        "SERVING_MODELS": f"models:/{NAME}/Production,models:/{TALKER}/1",
        "SERVING_PROBATION_SECONDS": "5",
        "SERVING_POLL_SECONDS": "0.2",
        "SERVING_MAX_QUEUE_SECONDS": "0.05",
        "SERVING_DEADLINE_SECONDS": f"{DEADLINE_SECONDS:g}",
    }
    with ExitStack() as stack:
        register_attacks(client, folder, stack.enter_context(silent_source()))
        url = stack.enter_context(service.serving(registry, folder, env=env))
        return Soak(url, client, random.Random(seed)).run(seconds, tell)


def show(found: Found, out: Console) -> None:
    """Print what was found."""
    sheet.show([_sheet(found)], out)
    for fault in found.wrong[:20]:
        out.print(f"[red]✗[/] {fault}", soft_wrap=True)


def markdown(found: Found) -> str:
    """The section of RESULTS.md."""
    return sheet.markdown("Soak: `python -m benchmarks soak`", [_sheet(found)])


def raw(found: Found) -> dict[str, Any]:
    """Return all measurements for a JSON file; `asdict` makes no counter of a counter."""
    return {**vars(found), "done": {**found.done}, "sizes": [asdict(each) for each in found.sizes]}


def failures(found: Found) -> int:
    """How many calls failed or were answered wrongly."""
    return len(found.wrong)


def register(folder: Path) -> None:
    """Log a version for each factor, and a broken one, in the registry that is MLflow's."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    mlflow.set_experiment("iris")  # whose artifacts are kept in `folder`
    example = pd.DataFrame({"x": [1.0, 2.0]})
    for config in (*({"factor": factor} for factor in FACTORS), {"broken": True}):
        mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(Path(__file__).with_name("multiplier.py")),
            model_config=config,
            signature=infer_signature(example, [0.0]),
            pip_requirements=["mlflow"],  # else MLflow loads the model once more to find out
            registered_model_name=NAME,
        )
    mlflow.pyfunc.log_model(
        name=TALKER,
        python_model=str(Path(__file__).with_name("talker.py")),
        signature=infer_signature(example, [0.0]),
        pip_requirements=["mlflow"],
        registered_model_name=TALKER,
    )


def register_attacks(client: Any, folder: Path, source: str) -> None:
    """Register versions of which one has a harmful `MLmodel` file and one a source that never responds."""
    (folder / "bad").mkdir()
    (folder / "bad" / "MLmodel").write_text("[" * 100_000)
    for version, location in ((BAD_FILE, str(folder / "bad")), (SILENT, source)):
        assert str(client.create_model_version(NAME, location).version) == version


def _sheet(found: Found) -> Sheet:
    first = next(each for each in found.sizes if each.seconds >= found.sizes[-1].seconds * _WARM)
    last = found.sizes[-1]
    rows = [("minutes", f"{found.seconds / 60:.1f}")]
    rows += [(what, f"{count:,}") for what, count in sorted(found.done.items())]
    rows += [
        ("calls answered", f"{found.answered:,}"),
        ("calls refused under overload or attack", f"{found.refused:,}"),
        ("calls failed or answered wrongly", f"{len(found.wrong):,}"),
        *(
            (f"recovery, s, median / most: {attack}", f"{median(seconds):.1f} / {max(seconds):.1f}")
            for attack, seconds in sorted(found.recoveries.items())
        ),
        ("front, MB: after a quarter of the time / at the end", f"{first.front:.1f} / {last.front:.1f}"),
        ("fork server, MB", f"{first.fork_server:.1f} / {last.fork_server:.1f}"),
        ("files that the front has open", f"{first.files} / {last.files}"),
    ]
    return Sheet("What was done, and what became of it", ("what", "how many"), tuple(rows))
