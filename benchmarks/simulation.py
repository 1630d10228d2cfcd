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

from serving.registry.decisions import next_poll_delay, retry_delay

SHARED_FROM = 4
PATIENCE = 3.0
LONGEST_LOOK = 10.0
BETWEEN_LOOKS = 10.0
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
    poll: float = 1.0
    seconds: float = 60.0
    bringing_up: float = 0.4
    files: int = 9
    restrained: bool = True
    aliases_every: float = 5.0
    jitter: float = 0.0
    together: bool = False
    promoted_at: float | None = None
    away: tuple[float, float] | None = None
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
    asked: Counter[str] = field(default_factory=Counter)
    in_vain: int = 0
    busy: float = 0.0
    waits: list[float] = field(default_factory=list)
    stale: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)

    @property
    def measured_seconds(self) -> float:
        """How long was measured."""
        return self.plan.seconds * 2 / 3

    @property
    def rate(self) -> float:
        """Calls a second that reached the registry."""
        return self.asked.total() / self.measured_seconds

    @property
    def load(self) -> float:
        """The share of the workers' time that was used."""
        return self.busy / self.measured_seconds / self.plan.workers

    @property
    def failed(self) -> float:
        """The share of calls that were given up or refused."""
        return self.in_vain / max(1, self.asked.total())

    def peak(self, since: float) -> int:
        """The most calls within a second, from a moment on."""
        return max(Counter(int(moment) for moment in self.moments if moment >= since).values(), default=0)


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
    def is_away(self) -> bool:
        away = self._plan.away
        return away is not None and away[0] <= self._env.now < away[1]

    def has_promoted(self) -> bool:
        at = self._plan.promoted_at
        return at is not None and self._env.now >= at

    def call(self, kind: str) -> Steps:
        """What the registry says, None if that is nothing: it takes too long, or is away."""
        began = self._env.now
        counted = began >= self._plan.seconds / 3
        self._outcome.moments.append(began)
        self._outcome.asked[kind] += counted
        if self.is_away:
            self._outcome.in_vain += counted
            yield self._env.timeout(0.001)
            return None
        answering = self._env.process(self._answer(kind))
        yield answering | self._env.timeout(PATIENCE)
        if answering.is_alive:
            self._outcome.in_vain += counted
            return None
        if counted:
            self._outcome.waits.append(self._env.now - began)
        return answering.value

    def _answer(self, kind: str) -> Steps:
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
        self._starts = 0.0 if plan.together else chance.uniform(0, plan.poll)
        self._glance: simpy.Process | None = None
        self._glanced_at = float("-inf")
        self._has_reached, self._waited = True, 0.0

    def follow(self, *, promoted: bool) -> Steps:
        """One model: look, rest, look again."""
        plan, env = self._plan, self._env
        follower = _Follower(promoted=promoted, woken=env.event())
        yield env.timeout(self._starts + self._chance.uniform(0, 0.01))
        while True:
            if (yield from self._is_due(follower)):
                yield from self._look(follower)
            waited = self._waited if plan.restrained else 0.0
            follower.pace = next_poll_delay(plan.poll, waited, follower.pace if plan.restrained else 0.0)
            seconds = max(follower.pace, retry_delay(follower.misses, LONGEST_LOOK) if follower.misses else 0)
            follower.woken = env.event()
            jitter = self._chance.uniform(1 - plan.jitter, 1 + plan.jitter)
            yield env.timeout(seconds * jitter) | follower.woken

    def _is_due(self, follower: _Follower) -> Steps:
        if self._plan.models < SHARED_FROM:
            return True
        if self._glance is None or self._env.now - self._glanced_at > self._plan.poll / 2:
            self._glanced_at = self._env.now
            self._glance = self._env.process(self._ask("marker"))
        shown = yield self._glance
        if shown is None:
            return True
        is_news = follower.shown is None or (follower.promoted and shown != follower.shown)
        if not is_news and self._env.now < follower.due and not follower.is_unsettled:
            return False
        follower.shown = shown
        between = max(BETWEEN_LOOKS, 10 * self._plan.poll)
        follower.due = self._env.now + between * self._chance.uniform(0.8, 1.2)
        return True

    def _look(self, follower: _Follower) -> Steps:
        said = yield from self._ask("look")
        if said is None:
            follower.misses, follower.shown = follower.misses + 1, None
            self._has_reached = False
            return
        follower.misses = 0
        if not self._has_reached:
            self._has_reached = True
            self._outcome.back.append(self._env.now)
        (is_new,) = said
        if is_new and follower.promoted and not follower.is_unsettled and not follower.has_swapped:
            follower.is_unsettled = True
            self._env.process(self._bring_up(follower))
        elif self._env.now >= follower.aliases_due:
            follower.aliases_due = self._env.now + self._plan.aliases_every
            yield from self._ask("aliases")

    def _bring_up(self, follower: _Follower) -> Steps:
        failures = 0
        while not (yield from self._all(["location", "aliases", *["artifacts"] * self._plan.files])):
            yield self._env.timeout(retry_delay(failures))
            failures += 1
        yield self._env.timeout(self._plan.bringing_up * self._chance.uniform(0.8, 1.2))
        follower.is_unsettled, follower.has_swapped = False, True
        self._outcome.stale.append(self._env.now - (self._plan.promoted_at or 0))
        if not follower.woken.triggered:
            follower.woken.succeed()
        yield from self._all(["tags", "tags"])

    def _ask(self, kind: str) -> Steps:
        began = self._env.now
        said = yield from self._registry.call(kind)
        self._waited = self._env.now - began
        return said

    def _all(self, kinds: list[str]) -> Steps:
        for kind in kinds:
            if (yield from self._ask(kind)) is None:
                return False
        return True


@dataclass(slots=True)
class _Follower:
    promoted: bool
    woken: simpy.Event
    misses: int = 0
    pace: float = 0.0
    due: float = 0.0
    aliases_due: float = 0.0
    shown: tuple[bool] | None = None
    is_unsettled: bool = False
    has_swapped: bool = False
