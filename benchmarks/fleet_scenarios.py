"""Simulated scenarios: ten to a thousand fronts on one registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fleet_simulation import Outcome, Plan, simulate


@dataclass(frozen=True, slots=True)
class Fleet:
    """A simulated fleet: load of the registry, and each front's seconds until the new version is live."""

    name: str
    plan: Plan
    rate: float
    load: float
    failed: float
    seconds_to_live: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Recovery:
    """A simulated outage: maximum calls per second afterwards, and the seconds until each front recovers."""

    name: str
    plan: Plan
    peak: int
    seconds_to_recover: tuple[float, ...]


def fleets(costs: Mapping[str, float]) -> list[Fleet]:
    """Simulate fleets on a registry with 4 or 16 workers, and one promotion on each of their fronts."""
    few: dict[str, Any] = {"promoted_at": 60.0, "seconds": 120.0}
    many = few | {"seconds": 360.0}
    planned = {
        "10 fronts, one model each": Plan(costs, 4, 10, **few),
        "100 fronts, one model each": Plan(costs, 4, 100, **few),
        "100 fronts, 10 models each": Plan(costs, 4, 100, 10, **few),
        "1,000 fronts, one model each": Plan(costs, 4, 1000, **many),
        "the same without restraint": Plan(costs, 4, 1000, restrained=False, **many),
        "the same, a poll every 10 s": Plan(costs, 4, 1000, poll_seconds=10, **many),
        "… artifacts in a bucket": Plan(costs, 4, 1000, poll_seconds=10, files=0, **many),
        "… and 16 workers": Plan(costs, 16, 1000, poll_seconds=10, files=0, **many),
        "… and 10 of 10,000 models each": Plan(costs, 16, 1000, 10, poll_seconds=10, files=0, **many),
    }
    return [_fleet(name, simulate(plan)) for name, plan in planned.items()]


def _fleet(name: str, outcome: Outcome) -> Fleet:
    return Fleet(
        name, outcome.plan, outcome.rate, outcome.load, outcome.failed, tuple(sorted(outcome.seconds_to_live))
    )


def outages(costs: Mapping[str, float]) -> list[Recovery]:
    """Simulate a registry with 4 workers that rejects all calls for twenty seconds, and then returns."""
    ends = 90.0
    outage: dict[str, Any] = {"away": (ends - 20, ends), "seconds": 150.0}
    planned = {
        "100 fronts": Plan(costs, 4, 100, **outage),
        "100 fronts, delays vary by 10 %": Plan(costs, 4, 100, jitter=0.1, **outage),
        "100 fronts, without restraint": Plan(costs, 4, 100, restrained=False, **outage),
        "1,000 fronts, a poll every 10 s": Plan(costs, 4, 1000, poll_seconds=10, **outage),
    }
    return [_recovery(name, simulate(plan), ends) for name, plan in planned.items()]


def _recovery(name: str, outcome: Outcome, ends: float) -> Recovery:
    seconds_to_recover = [moment - ends for moment in outcome.recovered_at if moment >= ends]
    return Recovery(name, outcome.plan, outcome.peak(ends), tuple(sorted(seconds_to_recover)))
