"""More requests than a model can answer: how soon what is taken is answered, and the rest refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from benchmarks import service, sheet
from benchmarks.arrivals import Arrival, arrive
from benchmarks.client import Probed, summary
from benchmarks.promotion import registry_client
from benchmarks.sheet import Sheet, range_of
from benchmarks.throughput import ROW, make_registry
from benchmarks.toiler import SECONDS_A_ROW

LOADS = (0.5, 2, 10)
_WAITS = {"0.1": "0.1 s", "1": "1 s, the default", "3600": "for ever: no shedding"}
NAME = "toiler"


@dataclass(frozen=True, slots=True)
class Driven:
    """One setting under one load in one round; latencies in milliseconds."""

    wait: str
    load: float
    seconds: float
    answered: int
    refused: int
    failed: int
    taken: Probed | None
    """Of those that were answered."""
    refusing: Probed | None
    """Of those that were refused with 503."""


def measure(folder: Path, rounds: int, seconds: float) -> list[Driven]:
    """Load each setting in turn, round by round.

    Raises:
        NotStarted: a service does not start.
    """
    registry = make_registry(folder)
    register(registry)
    found = []
    with ExitStack() as stack:
        urls = {wait: stack.enter_context(_serving(registry, folder, wait)) for wait in _WAITS}
        for url in urls.values():
            _drive(url, "", 2, 2)
        for _ in range(rounds):
            for load in LOADS:
                found += [_drive(url, wait, load, seconds) for wait, url in urls.items()]
    return found


def show(found: Sequence[Driven], out: Console) -> None:
    """Print what was found."""
    sheet.show([_sheet(found)], out)


def markdown(found: Sequence[Driven]) -> str:
    """The section of RESULTS.md."""
    return sheet.markdown("Overload: `python -m benchmarks overload`", [_sheet(found)])


def raw(found: Sequence[Driven]) -> list[dict[str, Any]]:
    """All measurements, for JSON."""
    return [asdict(each) for each in found]


def failures(found: Sequence[Driven]) -> int:
    """How many requests were neither answered nor refused, where load is shed."""
    return sum(each.failed for each in found if each.wait != "3600")


def _serving(registry: str, folder: Path, wait: str) -> Any:
    place = folder / f"wait-{wait}"
    place.mkdir()
    env = {"SERVING_MODELS": f"models:/{NAME}/1", "SERVING_MAX_QUEUE_SECONDS": wait}
    return service.serving(registry, place, env=env)


def _drive(url: str, wait: str, load: float, seconds: float) -> Driven:
    arrivals = asyncio.run(arrive(f"{url}/predict", orjson.dumps(ROW), load / SECONDS_A_ROW, seconds))
    answered, refused = _with(arrivals, 200), _with(arrivals, 503)
    failed = len(arrivals) - len(answered) - len(refused)
    taken, refusing = (summary(each) if each else None for each in (answered, refused))
    return Driven(wait, load, seconds, len(answered), len(refused), failed, taken, refusing)


def _with(arrivals: Sequence[Arrival], status: int) -> list[float]:
    return [each.seconds * 1e3 for each in arrivals if each.status == status]


def register(registry: str) -> None:
    """Log the model in a registry."""
    registry_client(registry)
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    flowers = pd.DataFrame([ROW])
    mlflow.set_experiment("iris")  # whose artifacts are kept in `folder`
    mlflow.pyfunc.log_model(
        name=NAME,
        python_model=str(Path(__file__).with_name("toiler.py")),
        signature=infer_signature(flowers, [0.0]),
        input_example=flowers,
        pip_requirements=["mlflow"],  # else MLflow loads the model once more to find out
        registered_model_name=NAME,
    )


def _sheet(found: Sequence[Driven]) -> Sheet:
    lines = []
    for wait, told in _WAITS.items():
        for load in LOADS:
            rounds = [each for each in found if (each.wait, each.load) == (wait, load)]
            taken = [each.taken for each in rounds if each.taken]
            refusing = [each.refusing for each in rounds if each.refusing]
            lines.append(
                (
                    told,
                    f"{load:g}",
                    range_of([each.answered / each.seconds * SECONDS_A_ROW for each in rounds]),
                    range_of([each.p50 for each in taken]) if taken else "–",
                    range_of([each.p99 for each in taken]) if taken else "–",
                    str(sum(each.refused for each in rounds)),
                    range_of([each.p99 for each in refusing]) if refusing else "–",
                    str(sum(each.failed for each in rounds)),
                )
            )
    columns = (
        "may wait",
        "asked, of capacity",
        "answered, of capacity",
        "p50 ms",
        "p99 ms",
        "refused",
        "p99 of refusals, ms",
        "failed",
    )
    notes = (
        f"A model that takes {SECONDS_A_ROW * 1e3:g} ms a row, so that its capacity is {1 / SECONDS_A_ROW:g} "
        "rows/s; requests of one row arrive at a constant rate, whatever becomes of those before. Latencies "
        "are those of answered requests, from when they were due. Least / median / most of the rounds.",
    )
    return Sheet("More than a model can answer", columns, tuple(lines), notes)
