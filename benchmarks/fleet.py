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

from benchmarks import registry_server, report, servers
from benchmarks.fleet_scenarios import Fleet, Recovery, fleets, outages
from benchmarks.fleet_simulation import Plan, quantile, simulate
from benchmarks.postgres import Postgres
from benchmarks.promotion import more_versions, registry_client, seconds_to_live
from benchmarks.registry_server import Cost, PollStats
from benchmarks.report import ReportTable
from benchmarks.scale import register
from benchmarks.throughput import make_registry

FEW, MANY = 10, 10_000
OF_PROMOTION = ("location", "tags", "tag", "artifacts")
_FRONTS = 3
_MODELS = (1, 6)


@dataclass(frozen=True, slots=True)
class CallRate:
    """Calls of one real front, a second or for one promotion, and what the simulation has for it."""

    what: str
    measured: Mapping[str, float]
    simulated: float


@dataclass(frozen=True, slots=True)
class Validation:
    """What clients that look as fronts do saw, and what the simulation has for as many fronts."""

    measured: PollStats
    simulated: PollStats


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured and simulated."""

    costs: list[Cost]
    call_rates: list[CallRate]
    validations: list[Validation]
    fleets: list[Fleet]
    recoveries: list[Recovery]


def measure(folder: Path, seconds: float, progress: Callable[[str], None]) -> Results:
    """Measure the registry and fronts on it, and simulate fleets with what was found.

    Raises:
        NoWrk: wrk is not installed.
        NotStarted: a server did not come up, or a version did not go live.
    """
    with Postgres() as postgres, registry_server.server(folder, uri := postgres.url(), 1) as url:
        progress("what a call costs")
        costs = []
        for models in (FEW, MANY):
            registry_server.populate(uri, models)
            costs += [
                registry_server.cost(url, folder, call, models, 1, seconds) for call in registry_server.CALLS
            ]
        seconds_of = {cost.call: 1 / cost.rate for cost in costs if cost.models == MANY}
        seconds_of["artifacts"] = seconds_of["location"]
        progress("what fronts ask")
        call_rates = _call_rates(url, folder, seconds_of, 4 * seconds)
        progress("clients that look as fronts do")
        validations = _validations(url, seconds_of["look"], 10 * seconds)
    progress("fleets")
    return Results(costs, call_rates, validations, fleets(seconds_of), outages(seconds_of))


# -- real fronts


def _call_rates(url: str, folder: Path, costs: Mapping[str, float], seconds: float) -> list[CallRate]:
    make_registry(folder, url)
    client = registry_client(url)
    register(client, names := [f"many-{number}" for number in range(max(_MODELS))])
    log, results = folder / "mlflow.log", []
    for models in _MODELS:
        with ExitStack() as stack:
            references = ",".join(f"models:/{name}/Production" for name in names[:models])
            fronts = [
                _front(stack, url, folder / f"{models}-{number}", references) for number in range(_FRONTS)
            ]
            idle = _calls(log, lambda: time.sleep(seconds))
            plan = Plan(costs, 1, _FRONTS, models)
            rates = {call: count / seconds / _FRONTS for call, count in idle.items()}
            results.append(CallRate(f"{models} followed, a second", rates, simulate(plan).rate / _FRONTS))
            if models == 1:
                promoted = _calls_of_promotion(client, names[0], fronts, log)
                results.append(CallRate("for a promotion", promoted, _simulated_promotion(plan)))
    return results


def _front(stack: ExitStack, url: str, folder: Path, references: str) -> str:
    folder.mkdir()
    return stack.enter_context(servers.serving(url, folder, "--models", references))


def _calls_of_promotion(client: Any, name: str, fronts: Sequence[str], log: Path) -> dict[str, float]:
    """The calls of each front that are for a promotion alone, beyond its looks."""
    (version,) = more_versions(client, name, 1)

    def promote(_: str) -> None:
        client.transition_model_version_stage(name, version, "Production", True)

    def swap() -> None:
        for number, front in enumerate(fronts):
            seconds_to_live(
                f"{front}/models/{name}/predict", version, promote if number == 0 else lambda _: None
            )
        time.sleep(2)  # the tags follow with the next look

    results = _calls(log, swap)
    return {call: count / len(fronts) for call, count in results.items() if call in OF_PROMOTION}


def _simulated_promotion(plan: Plan) -> float:
    calls = simulate(replace(plan, promoted_at=plan.seconds / 2)).calls
    return sum(calls[call] for call in OF_PROMOTION) / plan.fronts


def _calls(log: Path, during: Callable[[], None]) -> Counter[str]:
    since = log.stat().st_size
    during()
    return registry_server.count_calls(log, since)


# -- clients that look as fronts do


def _validations(url: str, cost: float, seconds: float) -> list[Validation]:
    capacity = round(1 / cost)
    return [
        Validation(
            registry_server.poll_as_fronts(url, fronts, seconds, restrained=restrained),
            _simulated(cost, fronts, seconds, restrained=restrained),
        )
        for fronts in (capacity // 3, 2 * capacity, 6 * capacity)
        for restrained in (False, True)
    ]


def _simulated(cost: float, fronts: int, seconds: float, *, restrained: bool) -> PollStats:
    looks_alone = {"look": cost, "aliases": 0.0}
    plan = Plan(
        looks_alone, 1, fronts, seconds=seconds, restrained=restrained, alias_poll_seconds=float("inf")
    )
    results = simulate(plan)
    waits = results.waits
    return PollStats(
        fronts, restrained, results.rate, quantile(waits, 0.5), quantile(waits, 0.99), results.failed
    )


# -- telling


def show(results: Results, out: Console) -> None:
    """Print what was found."""
    report.show(_tables(results), out)


def markdown(results: Results) -> str:
    """The section of RESULTS.md."""
    return report.markdown("Many fronts on one registry: `python -m benchmarks fleet`", _tables(results))


def raw(results: Results) -> dict[str, Any]:
    """All figures, for JSON."""
    return asdict(results)


def _tables(results: Results) -> list[ReportTable]:
    return [
        _cost_table(results.costs),
        _call_rate_table(results.call_rates),
        _polling_table(results.validations),
        _fleet_table(results.fleets),
        _recovery_table(results.recoveries),
    ]


def _cost_table(costs: Sequence[Cost]) -> ReportTable:
    rate = {(cost.call, cost.models): cost.rate for cost in costs}
    return ReportTable(
        "What one worker of the MLflow server answers, on PostgreSQL",
        ("call", *(f"calls/s, {models:,} models registered" for models in (FEW, MANY))),
        tuple(
            (call, *(f"{rate[call, models]:,.0f}" for models in (FEW, MANY)))
            for call in registry_server.CALLS
        ),
        (
            "wrk with 8 connections, PostgreSQL and wrk on the same two cores. A look searches the versions "
            "of a model, a marker the five that changed last: what a front asks again and again.",
        ),
    )


def _call_rate_table(call_rates: Sequence[CallRate]) -> ReportTable:
    return ReportTable(
        "What a front asks the registry",
        ("models", "calls, as the server counted them", "in all", "simulated"),
        tuple(
            (
                call_rate.what,
                ", ".join(f"{call} {count:.2f}" for call, count in sorted(call_rate.measured.items())),
                f"{sum(call_rate.measured.values()):.2f}",
                f"{call_rate.simulated:.2f}",
            )
            for call_rate in call_rates
        ),
        (f"{_FRONTS} real fronts, which look every second; the first of them writes the tags for all.",),
    )


def _polling_table(validations: Sequence[Validation]) -> ReportTable:
    return ReportTable(
        "Clients that look every second as fronts do, at one worker: measured / simulated",
        ("clients", "restraint", "looks/s", "p50 s", "p99 s", "in vain"),
        tuple(
            (
                f"{validation.measured.fronts:,}",
                "yes" if validation.measured.restrained else "no",
                f"{validation.measured.rate:.0f} / {validation.simulated.rate:.0f}",
                f"{validation.measured.p50:.2f} / {validation.simulated.p50:.2f}",
                f"{validation.measured.p99:.2f} / {validation.simulated.p99:.2f}",
                f"{validation.measured.failed:.0%} / {validation.simulated.failed:.0%}",
            )
            for validation in validations
        ),
        ("A look is given up after 3 s. With restraint, rests are those of `serving.registry.plan`.",),
    )


def _fleet_table(fleets: Sequence[Fleet]) -> ReportTable:
    return ReportTable(
        "Simulated: fleets, and one promotion that each front is to see",
        ("fleet", "workers", "calls/s", "busy", "in vain", "seconds to live: p50 / p99", "live on"),
        tuple(
            (
                fleet.name,
                str(fleet.plan.workers),
                f"{fleet.rate:,.0f}",
                f"{fleet.load:.0%}",
                f"{fleet.failed:.0%}",
                f"{quantile(fleet.seconds_to_live, 0.5):.1f} / {quantile(fleet.seconds_to_live, 0.99):.1f}",
                f"{len(fleet.seconds_to_live) / fleet.plan.fronts:.0%}",
            )
            for fleet in fleets
        ),
        ("Calls, load and those in vain are of a third without and a third or two with the promotion.",),
    )


def _recovery_table(recoveries: Sequence[Recovery]) -> ReportTable:
    return ReportTable(
        "Simulated: the registry is away for 20 s and comes back, 4 workers",
        ("fleet", "most calls within a second", "seconds until answered again: p50 / all"),
        tuple(
            (
                recovery.name,
                f"{recovery.peak:,}",
                f"{quantile(recovery.seconds_to_recover, 0.5):.1f} / {quantile(recovery.seconds_to_recover, 1):.1f}",
            )
            for recovery in recoveries
        ),
    )
