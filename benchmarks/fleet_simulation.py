"""Simulation of a fleet that polls one registry: load of the registry, and delay of a promotion.

A front behaves as in `serving.registry`. It polls for each model that it follows; from four models on, all
models share one poll for changes, and each model has its own poll now and then. A call times out after three
seconds. The delays come from the product's own functions. Each worker of the server handles one call at a
time, in order of arrival. A call that the client has abandoned costs as much as any other call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import simpy

from serving.registry.decisions import next_poll_delay, retry_delay

SHARED_FROM = 4
TIMEOUT_SECONDS = 3.0
MAX_POLL_SECONDS = 10.0
FULL_POLL_SECONDS = 10.0
Steps = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of a simulation.

    Args:
        costs: Seconds of worker time, by kind of call.
        workers: Number of workers; each handles one call at a time.
        fronts: Number of fronts.
        models: Number of models that each front follows by stage.
        poll_seconds: Seconds between polls.
        seconds: Simulated seconds; the first third is warm-up.
        load_seconds: Seconds from the artifacts to a verified version.
        files: Number of calls for the artifacts of a version.
        restrained: Whether fronts poll less often when the registry is slow, as the product does.
        alias_poll_seconds: Seconds between polls of a live version's aliases.
        jitter: Relative amount by which a delay varies at random.
        together: Whether all fronts start at the same moment.
        promoted_at: Time at which a version of one model of each front is promoted.
        outage: Start and end of the time in which the registry rejects every call.
        seed: Seed of the random numbers.
    """

    costs: Mapping[str, float]
    workers: int
    fronts: int
    models: int = 1
    poll_seconds: float = 1.0
    seconds: float = 60.0
    load_seconds: float = 0.4
    files: int = 9
    restrained: bool = True
    alias_poll_seconds: float = 5.0
    jitter: float = 0.0
    together: bool = False
    promoted_at: float | None = None
    outage: tuple[float, float] | None = None
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """Results of a simulation.

    `calls`, `failed_calls`, `busy` and `waits` exclude the warm-up: calls by kind, calls that timed out or
    were rejected, seconds of worker time, and seconds of each successful call. `seconds_to_live` are the
    seconds from the promotion to the swap, one for each front that completed it. `called_at` are the times
    of all calls, and `recovered_at` the time of each front's first successful call after an outage.
    """

    plan: Plan
    calls: Counter[str] = field(default_factory=Counter)
    failed_calls: int = 0
    busy: float = 0.0
    waits: list[float] = field(default_factory=list)
    seconds_to_live: list[float] = field(default_factory=list)
    called_at: list[float] = field(default_factory=list)
    recovered_at: list[float] = field(default_factory=list)

    @property
    def measured_seconds(self) -> float:
        """Return the length of the simulation without the warm-up."""
        return self.plan.seconds * 2 / 3

    @property
    def rate(self) -> float:
        """Return the calls per second that reached the registry."""
        return self.calls.total() / self.measured_seconds

    @property
    def load(self) -> float:
        """Return the share of worker time that was used."""
        return self.busy / self.measured_seconds / self.plan.workers

    @property
    def failed(self) -> float:
        """Return the share of calls that timed out or were rejected."""
        return self.failed_calls / max(1, self.calls.total())

    def peak(self, since: float) -> int:
        """Return the maximum number of calls within one second, from a time on."""
        return max(Counter(int(moment) for moment in self.called_at if moment >= since).values(), default=0)


def simulate(plan: Plan) -> Outcome:
    """Run the simulation; equal plans have equal outcomes."""
    env = simpy.Environment()
    outcome = Outcome(plan)
    registry = _Registry(env, plan, outcome)
    chance = Random(plan.seed)
    for _ in range(plan.fronts):
        front = _Front(env, plan, registry, outcome, Random(chance.random()))
        for number in range(plan.models):
            env.process(front.follow(promoted=number == 0))
    env.run(until=plan.seconds)
    return outcome


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class _Registry:
    def __init__(self, env: simpy.Environment, plan: Plan, outcome: Outcome) -> None:
        self._env, self._plan, self._outcome = env, plan, outcome
        self._workers = simpy.Resource(env, plan.workers)
        self._chance = Random(plan.seed + 1)

    @property
    def is_down(self) -> bool:
        outage = self._plan.outage
        return outage is not None and outage[0] <= self._env.now < outage[1]

    def has_promoted(self) -> bool:
        at = self._plan.promoted_at
        return at is not None and self._env.now >= at

    def call(self, kind: str) -> Steps:
        """Return the registry's response, or None if the call times out or the registry is down."""
        began = self._env.now
        counted = began >= self._plan.seconds / 3
        self._outcome.called_at.append(began)
        self._outcome.calls[kind] += counted
        if self.is_down:
            self._outcome.failed_calls += counted
            yield self._env.timeout(0.001)
            return None
        call = self._env.process(self._serve(kind))
        yield call | self._env.timeout(TIMEOUT_SECONDS)
        if call.is_alive:
            self._outcome.failed_calls += counted
            return None
        if counted:
            self._outcome.waits.append(self._env.now - began)
        return call.value

    def _serve(self, kind: str) -> Steps:
        with self._workers.request() as turn:
            yield turn
            cost = self._plan.costs[kind] * self._chance.uniform(0.7, 1.3)
            yield self._env.timeout(cost)
            if self._env.now >= self._plan.seconds / 3:
                self._outcome.busy += cost
        return (self.has_promoted(),)


class _Front:
    def __init__(
        self, env: simpy.Environment, plan: Plan, registry: _Registry, outcome: Outcome, chance: Random
    ) -> None:
        self._env, self._plan, self._registry, self._outcome = env, plan, registry, outcome
        self._chance = chance
        self._starts = 0.0 if plan.together else chance.uniform(0, plan.poll_seconds)
        self._shared_poll: simpy.Process | None = None
        self._shared_poll_at = float("-inf")
        self._has_reached, self._waited = True, 0.0

    def follow(self, *, promoted: bool) -> Steps:
        """Follow one model: poll, wait, poll again."""
        plan, env = self._plan, self._env
        follower = _Follower(promoted=promoted, wake=env.event())
        yield env.timeout(self._starts + self._chance.uniform(0, 0.01))
        while True:
            if (yield from self._is_due(follower)):
                yield from self._poll(follower)
            waited = self._waited if plan.restrained else 0.0
            follower.pace = next_poll_delay(
                plan.poll_seconds, waited, follower.pace if plan.restrained else 0.0
            )
            seconds = max(
                follower.pace, retry_delay(follower.failures, MAX_POLL_SECONDS) if follower.failures else 0
            )
            follower.wake = env.event()
            jitter = self._chance.uniform(1 - plan.jitter, 1 + plan.jitter)
            yield env.timeout(seconds * jitter) | follower.wake

    def _is_due(self, follower: _Follower) -> Steps:
        if self._plan.models < SHARED_FROM:
            return True
        if self._shared_poll is None or self._env.now - self._shared_poll_at > self._plan.poll_seconds / 2:
            self._shared_poll_at = self._env.now
            self._shared_poll = self._env.process(self._call("marker"))
        shown = yield self._shared_poll
        if shown is None:
            return True
        is_news = follower.shown is None or (follower.promoted and shown != follower.shown)
        if not is_news and self._env.now < follower.due and not follower.is_unsettled:
            return False
        follower.shown = shown
        between = max(FULL_POLL_SECONDS, 10 * self._plan.poll_seconds)
        follower.due = self._env.now + between * self._chance.uniform(0.8, 1.2)
        return True

    def _poll(self, follower: _Follower) -> Steps:
        result = yield from self._call("look")
        if result is None:
            follower.failures, follower.shown = follower.failures + 1, None
            self._has_reached = False
            return
        follower.failures = 0
        if not self._has_reached:
            self._has_reached = True
            self._outcome.recovered_at.append(self._env.now)
        (is_new,) = result
        if is_new and follower.promoted and not follower.is_unsettled and not follower.has_swapped:
            follower.is_unsettled = True
            self._env.process(self._load(follower))
        elif self._env.now >= follower.aliases_due:
            follower.aliases_due = self._env.now + self._plan.alias_poll_seconds
            yield from self._call("aliases")

    def _load(self, follower: _Follower) -> Steps:
        failures = 0
        while not (yield from self._all(["location", "aliases", *["artifacts"] * self._plan.files])):
            yield self._env.timeout(retry_delay(failures))
            failures += 1
        yield self._env.timeout(self._plan.load_seconds * self._chance.uniform(0.8, 1.2))
        follower.is_unsettled, follower.has_swapped = False, True
        self._outcome.seconds_to_live.append(self._env.now - (self._plan.promoted_at or 0))
        if not follower.wake.triggered:
            follower.wake.succeed()
        yield from self._all(["tags", "tags"])

    def _call(self, kind: str) -> Steps:
        began = self._env.now
        result = yield from self._registry.call(kind)
        self._waited = self._env.now - began
        return result

    def _all(self, kinds: list[str]) -> Steps:
        for kind in kinds:
            if (yield from self._call(kind)) is None:
                return False
        return True


@dataclass(slots=True)
class _Follower:
    promoted: bool
    wake: simpy.Event
    failures: int = 0
    pace: float = 0.0
    due: float = 0.0
    aliases_due: float = 0.0
    shown: tuple[bool] | None = None
    is_unsettled: bool = False
    has_swapped: bool = False
