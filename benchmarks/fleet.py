"""Many fronts on one registry: what a call costs it, what fronts ask, and fleets of them, simulated.

The figures that the simulation goes by are measured in the same run, on an MLflow server with PostgreSQL; and
what it foretells is measured there too, as far as one machine goes: with real fronts, and with clients that
look as fronts do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import registry, service, sheet
from benchmarks.fleets import Fleet, Return, fleets, outages
from benchmarks.postgres import Postgres
from benchmarks.promotion import more_versions, registry_client, seconds_to_answer
from benchmarks.registry import Cost, Herd
from benchmarks.scale import register
from benchmarks.sheet import Sheet
from benchmarks.simulation import Plan, quantile, simulate
from benchmarks.throughput import make_registry

FEW, MANY = 10, 10_000
OF_PROMOTION = ("location", "tags", "tag", "artifacts")
_FRONTS = 3
_MODELS = (1, 6)


@dataclass(frozen=True, slots=True)
class Asked:
    """Calls of one real front, a second or for one promotion, and what the simulation has for it."""

    what: str
    measured: Mapping[str, float]
    simulated: float


@dataclass(frozen=True, slots=True)
class Foretold:
    """What clients that look as fronts do saw, and what the simulation has for as many fronts."""

    measured: Herd
    simulated: Herd


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured and simulated."""

    costs: list[Cost]
    asked: list[Asked]
    foretold: list[Foretold]
    fleets: list[Fleet]
    returns: list[Return]


def measure(folder: Path, seconds: float, say: Callable[[str], None]) -> Found:
    """Measure the registry and fronts on it, and simulate fleets with what was found.

    Raises:
        NoWrk: wrk is not installed.
        NotStarted: a server did not come up, or a version did not go live.
    """
    with Postgres() as postgres, registry.server(folder, uri := postgres.url(), 1) as url:
        say("what a call costs")
        costs = []
        for models in (FEW, MANY):
            registry.populate(uri, models)
            costs += [registry.cost(url, folder, call, models, 1, seconds) for call in registry.CALLS]
        seconds_of = {cost.call: 1 / cost.rate for cost in costs if cost.models == MANY}
        seconds_of["artifacts"] = seconds_of["location"]
        say("what fronts ask")
        asked = _asked(url, folder, seconds_of, 4 * seconds)
        say("clients that look as fronts do")
        foretold = _foretold(url, seconds_of["look"], 10 * seconds)
    say("fleets")
    return Found(costs, asked, foretold, fleets(seconds_of), outages(seconds_of))


# -- real fronts


def _asked(url: str, folder: Path, costs: Mapping[str, float], seconds: float) -> list[Asked]:
    make_registry(folder, url)
    client = registry_client(url)
    register(client, names := [f"many-{number}" for number in range(max(_MODELS))])
    log, found = folder / "mlflow.log", []
    for models in _MODELS:
        with ExitStack() as stack:
            references = ",".join(f"models:/{name}/Production" for name in names[:models])
            fronts = [_front(stack, url, folder / f"{models}-{each}", references) for each in range(_FRONTS)]
            idle = _calls(log, lambda: time.sleep(seconds))
            plan = Plan(costs, 1, _FRONTS, models)
            each = {call: count / seconds / _FRONTS for call, count in idle.items()}
            found.append(Asked(f"{models} followed, a second", each, simulate(plan).rate / _FRONTS))
            if models == 1:
                promoted = _promoted(client, names[0], fronts, log)
                found.append(Asked("for a promotion", promoted, _simulated_promotion(plan)))
    return found


def _front(stack: ExitStack, url: str, folder: Path, references: str) -> str:
    folder.mkdir()
    return stack.enter_context(service.serving(url, folder, "--models", references))


def _promoted(client: Any, name: str, fronts: Sequence[str], log: Path) -> dict[str, float]:
    """The calls of each front that are for a promotion alone, beyond its looks."""
    (version,) = more_versions(client, name, 1)

    def promote(_: str) -> None:
        client.transition_model_version_stage(name, version, "Production", True)

    def swap() -> None:
        for number, front in enumerate(fronts):
            seconds_to_answer(
                f"{front}/models/{name}/predict", version, promote if number == 0 else lambda _: None
            )
        time.sleep(2)  # the tags follow with the next look

    found = _calls(log, swap)
    return {call: count / len(fronts) for call, count in found.items() if call in OF_PROMOTION}


def _simulated_promotion(plan: Plan) -> float:
    asked = simulate(replace(plan, promoted_at=plan.seconds / 2)).asked
    return sum(asked[call] for call in OF_PROMOTION) / plan.fronts


def _calls(log: Path, during: Callable[[], None]) -> Counter[str]:
    since = log.stat().st_size
    during()
    return registry.asked(log, since)


# -- clients that look as fronts do


def _foretold(url: str, cost: float, seconds: float) -> list[Foretold]:
    bears = round(1 / cost)
    return [
        Foretold(
            registry.herd(url, fronts, seconds, restrained=restrained),
            _simulated(cost, fronts, seconds, restrained=restrained),
        )
        for fronts in (bears // 3, 2 * bears, 6 * bears)
        for restrained in (False, True)
    ]


def _simulated(cost: float, fronts: int, seconds: float, *, restrained: bool) -> Herd:
    looks_alone = {"look": cost, "aliases": 0.0}
    plan = Plan(looks_alone, 1, fronts, seconds=seconds, restrained=restrained, aliases_every=float("inf"))
    found = simulate(plan)
    waits = found.waits
    return Herd(fronts, restrained, found.rate, quantile(waits, 0.5), quantile(waits, 0.99), found.failed)


# -- telling


def show(found: Found, out: Console) -> None:
    """Print what was found."""
    sheet.show(_sheets(found), out)


def markdown(found: Found) -> str:
    """The section of RESULTS.md."""
    return sheet.markdown("Many fronts on one registry: `python -m benchmarks fleet`", _sheets(found))


def raw(found: Found) -> dict[str, Any]:
    """All figures, for JSON."""
    return asdict(found)


def _sheets(found: Found) -> list[Sheet]:
    return [
        _sheet_of_costs(found.costs),
        _sheet_of_asked(found.asked),
        _sheet_of_herds(found.foretold),
        _sheet_of_fleets(found.fleets),
        _sheet_of_returns(found.returns),
    ]


def _sheet_of_costs(costs: Sequence[Cost]) -> Sheet:
    rate = {(cost.call, cost.models): cost.rate for cost in costs}
    return Sheet(
        "What one worker of the MLflow server answers, on PostgreSQL",
        ("call", *(f"calls/s, {models:,} models registered" for models in (FEW, MANY))),
        tuple((call, *(f"{rate[call, models]:,.0f}" for models in (FEW, MANY))) for call in registry.CALLS),
        (
            "wrk with 8 connections, PostgreSQL and wrk on the same two cores. A look searches the versions "
            "of a model, a marker the five that changed last: what a front asks again and again.",
        ),
    )


def _sheet_of_asked(asked: Sequence[Asked]) -> Sheet:
    return Sheet(
        "What a front asks the registry",
        ("models", "calls, as the server counted them", "in all", "simulated"),
        tuple(
            (
                each.what,
                ", ".join(f"{call} {count:.2f}" for call, count in sorted(each.measured.items())),
                f"{sum(each.measured.values()):.2f}",
                f"{each.simulated:.2f}",
            )
            for each in asked
        ),
        (f"{_FRONTS} real fronts, which look every second; the first of them writes the tags for all.",),
    )


def _sheet_of_herds(foretold: Sequence[Foretold]) -> Sheet:
    return Sheet(
        "Clients that look every second as fronts do, at one worker: measured / simulated",
        ("clients", "restraint", "looks/s", "p50 s", "p99 s", "in vain"),
        tuple(
            (
                f"{each.measured.fronts:,}",
                "yes" if each.measured.restrained else "no",
                f"{each.measured.rate:.0f} / {each.simulated.rate:.0f}",
                f"{each.measured.p50:.2f} / {each.simulated.p50:.2f}",
                f"{each.measured.p99:.2f} / {each.simulated.p99:.2f}",
                f"{each.measured.failed:.0%} / {each.simulated.failed:.0%}",
            )
            for each in foretold
        ),
        ("A look is given up after 3 s. With restraint, rests are those of `serving.registry.decisions`.",),
    )


def _sheet_of_fleets(fleets: Sequence[Fleet]) -> Sheet:
    return Sheet(
        "Simulated: fleets, and one promotion that each front is to see",
        ("fleet", "workers", "calls/s", "busy", "in vain", "seconds to live: p50 / p99", "live on"),
        tuple(
            (
                each.name,
                str(each.plan.workers),
                f"{each.rate:,.0f}",
                f"{each.load:.0%}",
                f"{each.failed:.0%}",
                f"{quantile(each.stale, 0.5):.1f} / {quantile(each.stale, 0.99):.1f}",
                f"{len(each.stale) / each.plan.fronts:.0%}",
            )
            for each in fleets
        ),
        ("Calls, load and those in vain are of a third without and a third or two with the promotion.",),
    )


def _sheet_of_returns(returns: Sequence[Return]) -> Sheet:
    return Sheet(
        "Simulated: the registry is away for 20 s and comes back, 4 workers",
        ("fleet", "most calls within a second", "seconds until answered again: p50 / all"),
        tuple(
            (
                each.name,
                f"{each.peak:,}",
                f"{quantile(each.back, 0.5):.1f} / {quantile(each.back, 1):.1f}",
            )
            for each in returns
        ),
    )
