"""A fleet of fronts that looks at one registry, simulated: what that is asked, and how stale the fronts are.

What a front does is as in `serving.registry`: a look for each model that it follows, or from four models on a
glance that all share and a look at each model now and then; three seconds of patience; rests and pauses, for
which the product's own functions are called. The server has workers, each of which answers one call at a
time, in turn; a call that its caller has given up costs it as much as any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import simpy

from serving.registry.plan import pause, rest

SHARED_FROM = 4
TIMEOUT_SECONDS = 3.0
MAX_POLL_SECONDS = 10.0
FULL_POLL_SECONDS = 10.0
Steps = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated.

    Args:
        costs: seconds that a worker takes for each kind of call.
        workers: that answer, each one call at a time.
        fronts: how many there are.
        models: that each front follows by stage.
        poll: seconds between looks.
        seconds: that are simulated; what happens in the first third is warming up.
        bringing_up: seconds from the artifacts to a version that is proven.
        files: calls for a version's artifacts.
        restrained: whether fronts rest for longer where the registry is slow, as the product does.
        aliases_every: seconds between looks at a live version's aliases.
        jitter: by which part of it a rest is longer or shorter, at random.
        together: whether all fronts start at the same moment.
        promoted_at: when a version of a model of each front is promoted.
        away: from when to when the registry refuses every call.
        seed: of what is random.
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
    """What came of it.

    `asked`, `in_vain`, `busy` and `waits` are of the time after warming up: calls by kind, those given up or
    refused, the workers' seconds, and the seconds of each call that was answered. `stale` are the seconds
    from the promotion to the swap of each front that got there, `moments` when calls were made, and `back`
    when each front was first answered again after the registry had been away.
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
        """How long was measured."""
        return self.plan.seconds * 2 / 3

    @property
    def rate(self) -> float:
        """Calls a second that reached the registry."""
        return self.calls.total() / self.measured_seconds

    @property
    def load(self) -> float:
        """The share of the workers' time that was used."""
        return self.busy / self.measured_seconds / self.plan.workers

    @property
    def failed(self) -> float:
        """The share of calls that were given up or refused."""
        return self.failed_calls / max(1, self.calls.total())

    def peak(self, since: float) -> int:
        """The most calls within a second, from a moment on."""
        return max(Counter(int(moment) for moment in self.called_at if moment >= since).values(), default=0)


def simulate(plan: Plan) -> Outcome:
    """Run it; the same plan has the same outcome."""
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
    """The value below which this share of them is."""
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
        """What the registry says, None if that is nothing: it takes too long, or is away."""
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
        """One model: look, rest, look again."""
        plan, env = self._plan, self._env
        follower = _Follower(promoted=promoted, wake=env.event())
        yield env.timeout(self._starts + self._chance.uniform(0, 0.01))
        while True:
            if (yield from self._is_due(follower)):
                yield from self._poll(follower)
            waited = self._waited if plan.restrained else 0.0
            follower.pace = rest(plan.poll_seconds, waited, follower.pace if plan.restrained else 0.0)
            seconds = max(
                follower.pace, pause(follower.failures, MAX_POLL_SECONDS) if follower.failures else 0
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
            yield self._env.timeout(pause(failures))
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
