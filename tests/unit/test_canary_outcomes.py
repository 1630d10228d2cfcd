"""Canary decisions from outcomes: bounds that hold at all times, and the verdicts of a step."""

from __future__ import annotations

from datetime import UTC, datetime
from math import log

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import betaln, xlogy

from serving.outcome_queries import LossSum, OutcomeBoard, OutcomeQuery, OutcomeSums
from serving.rollout.confidence_sequence import Bounds, difference_bounds, mean_bounds
from serving.rollout.outcome_test import Verdict, compare
from serving.settings.rollout import RolloutSettings
from serving.version import Version

LIMITS = RolloutSettings()
ALPHA = 0.05
OUTCOMES = 100_000
RUNS = 200
FIRST = 30
"""An ordinary test needs some outcomes; it would raise more false alarms with fewer."""
Floats = npt.NDArray[np.float64]


def arms(chance: np.random.Generator, new: float, old: float, outcomes: int) -> tuple[Floats, ...]:
    """Return the counts and losses of both versions after each of many outcomes."""
    is_new = chance.random(outcomes) < 0.5
    losses = chance.random(outcomes) < np.where(is_new, new, old)
    return (
        np.cumsum(is_new).astype(float),
        np.cumsum(losses & is_new).astype(float),
        np.cumsum(~is_new).astype(float),
        np.cumsum(losses & ~is_new).astype(float),
    )


def z_scores(new: Floats, new_losses: Floats, old: Floats, old_losses: Floats) -> Floats:
    """Return the statistic of the ordinary test of two rates after each outcome."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (new_losses + old_losses) / (new + old)
        deviation = np.sqrt(pooled * (1 - pooled) * (1 / new + 1 / old))
        return np.asarray(np.nan_to_num((new_losses / new - old_losses / old) / deviation))


def may_stop(new: Floats, new_losses: Floats, old: Floats, old_losses: Floats) -> npt.NDArray[np.intp]:
    """Return the moments at which the bounds of both versions can be disjoint.

    Disjoint bounds exclude the pooled rate from one of them: the ratio of that version exceeds 2 / alpha.
    """
    pooled = (new_losses + old_losses) / (new + old)

    def ratio(count: Floats, losses: Floats) -> Floats:
        mixture = betaln(0.5 + losses, 0.5 + count - losses) - betaln(0.5, 0.5)
        return np.asarray(mixture - xlogy(losses, pooled) - xlogy(count - losses, 1 - pooled))

    worse = np.flatnonzero(z_scores(new, new_losses, old, old_losses) > 2)
    new, new_losses, old, old_losses, pooled = (
        values[worse] for values in (new, new_losses, old, old_losses, pooled)
    )
    highest = np.maximum(ratio(new, new_losses), ratio(old, old_losses))
    return np.asarray(worse[highest > log(2 / ALPHA)])


def first_stop(sums: tuple[Floats, ...]) -> int | None:
    """Return the first outcome after which harm is proven."""
    for moment in may_stop(*sums):
        new, new_losses, old, old_losses = (float(values[moment]) for values in sums)
        if difference_bounds((int(new), new_losses), (int(old), old_losses), ALPHA).low > 0:
            return int(moment)
    return None


def test_checks_after_each_outcome_cause_few_false_stops() -> None:
    chance, rate = np.random.default_rng(20), 0.05
    stops = alarms = 0
    for _ in range(RUNS):
        sums = arms(chance, rate, rate, OUTCOMES)
        stops += first_stop(sums) is not None
        alarms += bool((z_scores(*sums)[FIRST:] > 1.96).any())
    assert stops <= ALPHA * RUNS
    assert alarms >= 0.3 * RUNS  # the ordinary test, which is meant for one check


def test_harm_is_proven() -> None:
    chance = np.random.default_rng(21)
    for _ in range(50):
        after = [values[20_000] for values in arms(chance, 0.1, 0.05, 20_001)]
        assert difference_bounds((int(after[0]), after[1]), (int(after[2]), after[3]), ALPHA).low > 0


def test_bounds_are_where_the_mixture_reaches_its_threshold() -> None:
    count, total, alpha = 1000, 100.0, 0.025
    bounds = mean_bounds(count, total, alpha)
    mixture = betaln(0.5 + total, 0.5 + count - total) - betaln(0.5, 0.5)
    for p in (bounds.low, bounds.high):
        ratio = mixture - xlogy(total, p) - xlogy(count - total, 1 - p)
        assert ratio == pytest.approx(log(1 / alpha), abs=1e-6)
    assert bounds.low < 0.1 < bounds.high


@pytest.mark.parametrize(
    ("count", "total"), [(1, 0.0), (1, 1.0), (50, 50.0), (10**7, 10**7 - 1e-6), (3, 1.7)]
)
def test_extreme_sums_have_bounds(count: int, total: float) -> None:
    bounds = mean_bounds(count, total, 0.025)
    assert 0 <= bounds.low <= total / count <= bounds.high <= 1
    assert bounds.low < bounds.high


def test_no_outcomes_prove_nothing() -> None:
    assert mean_bounds(0, 0.0, 0.05) == Bounds(0.0, 1.0)
    assert difference_bounds((0, 0.0), (10**6, 0.0), 0.05).high == pytest.approx(1.0)


def sums(new: tuple[int, float], old: tuple[int, float]) -> OutcomeSums:
    return OutcomeSums(LossSum(*new), LossSum(*old))


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ((100, 5), (100, 5), Verdict.WAITING),
        ((20_000, 1000), (20_000, 1000), Verdict.HARMLESS),
        ((2000, 400), (20_000, 1000), Verdict.HARMFUL),
        ((2000, 20), (20_000, 1000), Verdict.HARMLESS),
        ((10**7, 510_000), (10**7, 500_000), Verdict.HARMLESS),  # proven harm, but less than the margin
    ],
)
def test_verdict(new: tuple[int, float], old: tuple[int, float], verdict: Verdict) -> None:
    assert compare(sums(new, old), LIMITS, ALPHA).verdict is verdict


def test_step_waits_for_the_configured_number_of_outcomes() -> None:
    limits = RolloutSettings(canary_min_outcomes=30_000)
    evidence = compare(sums((20_000, 1000), (20_000, 1000)), limits, ALPHA)
    assert evidence.verdict is Verdict.WAITING
    assert "20,000 outcomes against 20,000" in str(evidence)


def test_results_of_closed_queries_are_ignored() -> None:
    board = OutcomeBoard()
    new, old = (Version("iris", number, "", number) for number in "21")
    changes: list[int] = []
    board.provide(lambda: changes.append(len(board.queries)))
    number = board.open(OutcomeQuery(new, old, datetime.now(UTC)))
    board.publish(number, sums((1, 1), (1, 0)))
    assert board.result(number).new == LossSum(1, 1)
    board.close(number)
    board.publish(number, sums((9, 9), (9, 0)))
    assert board.result(number) == OutcomeSums()
    assert changes == [1, 0]
