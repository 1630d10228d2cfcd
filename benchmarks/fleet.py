"""Many fronts on one registry: cost of a call, calls per front, and simulated fleets.

The inputs of the simulation are measured in the same run, on an MLflow server with PostgreSQL. Its outputs
are validated as far as one machine allows: with real fronts, and with clients that poll like fronts.
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
    """Calls per second, or per promotion, of one real front, and the simulated number."""

    what: str
    measured: Mapping[str, float]
    simulated: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Measurements of clients that poll like fronts, and the simulation of as many fronts."""

    measured: PollStats
    simulated: PollStats


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements and simulations."""

    costs: list[Cost]
    call_rates: list[CallRate]
    validations: list[Validation]
    fleets: list[Fleet]
    recoveries: list[Recovery]


def measure(folder: Path, seconds: float, progress: Callable[[str], None]) -> Results:
    """Measure the registry and the fronts on it, and simulate fleets from these numbers.

    Raises:
        WrkNotInstalled: wrk is not installed.
        NotStarted: A server did not start, or a version did not go live.
    """
    with Postgres() as postgres, registry_server.server(folder, uri := postgres.url(), 1) as url:
        progress("cost of a call")
        costs = []
        for models in (FEW, MANY):
            registry_server.populate(uri, models)
            costs += [
                registry_server.cost(url, folder, call, models, 1, seconds) for call in registry_server.CALLS
            ]
        seconds_of = {cost.call: 1 / cost.rate for cost in costs if cost.models == MANY}
        seconds_of["artifacts"] = seconds_of["location"]
        progress("calls of fronts")
        call_rates = _call_rates(url, folder, seconds_of, 4 * seconds)
        progress("clients that poll like fronts")
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
            results.append(CallRate(f"{models} followed, per second", rates, simulate(plan).rate / _FRONTS))
            if models == 1:
                promoted = _calls_of_promotion(client, names[0], fronts, log)
                results.append(CallRate("per promotion", promoted, _simulated_promotion(plan)))
    return results


def _front(stack: ExitStack, url: str, folder: Path, references: str) -> str:
    folder.mkdir()
    return stack.enter_context(servers.serving(url, folder, "--models", references))


def _calls_of_promotion(client: Any, name: str, fronts: Sequence[str], log: Path) -> dict[str, float]:
    """Return the calls per front that belong to a promotion alone, without its polls."""
    (version,) = more_versions(client, name, 1)

    def promote(_: str) -> None:
        client.transition_model_version_stage(name, version, "Production", True)

    def swap() -> None:
        for number, front in enumerate(fronts):
            seconds_to_live(
                f"{front}/models/{name}/predict", version, promote if number == 0 else lambda _: None
            )
        time.sleep(2)  # the next poll writes the tags

    results = _calls(log, swap)
    return {call: count / len(fronts) for call, count in results.items() if call in OF_PROMOTION}


def _simulated_promotion(plan: Plan) -> float:
    calls = simulate(replace(plan, promoted_at=plan.seconds / 2)).calls
    return sum(calls[call] for call in OF_PROMOTION) / plan.fronts


def _calls(log: Path, during: Callable[[], None]) -> Counter[str]:
    since = log.stat().st_size
    during()
    return registry_server.count_calls(log, since)


# -- clients that poll like fronts


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


# -- report


def show(results: Results, out: Console) -> None:
    """Print the results."""
    report.show(_tables(results), out)


def markdown(results: Results) -> str:
    """Return the section of RESULTS.md."""
    return report.markdown("Many fronts on one registry: `python -m benchmarks fleet`", _tables(results))


def raw(results: Results) -> dict[str, Any]:
    """Return all numbers for JSON."""
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
        "Capacity of one worker of the MLflow server, on PostgreSQL",
        ("call", *(f"calls/s, {models:,} models registered" for models in (FEW, MANY))),
        tuple(
            (call, *(f"{rate[call, models]:,.0f}" for models in (FEW, MANY)))
            for call in registry_server.CALLS
        ),
        (
            "wrk with 8 connections; PostgreSQL and wrk share two cores. `look` searches the versions of a "
            "model, `marker` the five that changed last: the calls of each poll.",
        ),
    )


def _call_rate_table(call_rates: Sequence[CallRate]) -> ReportTable:
    return ReportTable(
        "Calls of a front to the registry",
        ("models", "calls, from the server's log", "total", "simulated"),
        tuple(
            (
                call_rate.what,
                ", ".join(f"{call} {count:.2f}" for call, count in sorted(call_rate.measured.items())),
                f"{sum(call_rate.measured.values()):.2f}",
                f"{call_rate.simulated:.2f}",
            )
            for call_rate in call_rates
        ),
        (f"{_FRONTS} real fronts, which poll every second; the first one writes the tags for all.",),
    )


def _polling_table(validations: Sequence[Validation]) -> ReportTable:
    return ReportTable(
        "Clients that poll every second like fronts, with one worker: measured / simulated",
        ("clients", "restraint", "polls/s", "p50 s", "p99 s", "failed"),
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
        ("A poll times out after 3 s. With restraint, the delays are those of the service.",),
    )


def _fleet_table(fleets: Sequence[Fleet]) -> ReportTable:
    return ReportTable(
        "Simulated: fleets with one promotion on each front",
        ("fleet", "workers", "calls/s", "busy", "failed", "seconds to live: p50 / p99", "live on"),
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
        ("Calls, load and failures cover the time after the warm-up, before and after the promotion.",),
    )


def _recovery_table(recoveries: Sequence[Recovery]) -> ReportTable:
    return ReportTable(
        "Simulated: an outage of the registry for 20 s, 4 workers",
        ("fleet", "max calls per second", "seconds to recover: p50 / max"),
        tuple(
            (
                recovery.name,
                f"{recovery.peak:,}",
                " / ".join(f"{quantile(recovery.seconds_to_recover, share):.1f}" for share in (0.5, 1)),
            )
            for recovery in recoveries
        ),
    )
