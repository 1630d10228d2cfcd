"""Compare the outcomes of a challenger with those of the primary, as often as new ones arrive."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from serving.models.loaded_model import LoadedModel
from serving.outcome_queries import LossSum, OutcomeBoard, OutcomeQuery, OutcomeSums
from serving.rollout.confidence_sequence import difference_bounds
from serving.settings.rollout import RolloutSettings

_NO_PAIR: tuple[object, object] = (None, None)


class Verdict(StrEnum):
    """The result of a comparison."""

    WAITING = "waiting"
    HARMLESS = "harmless"
    HARMFUL = "harmful"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The outcomes of one canary step, and the bounds of the difference of the mean losses."""

    verdict: Verdict
    challenger_outcomes: int
    champion_outcomes: int
    challenger_loss: float | None
    champion_loss: float | None
    difference_low: float
    difference_high: float
    margin: float
    max_error: float | None
    """The absolute error of a number whose loss is 1; None for classes."""

    def __str__(self) -> str:
        counts = f"{self.challenger_outcomes:,} outcomes against {self.champion_outcomes:,}"
        bounds = f"its loss differs by {self.difference_low:+.4f} to {self.difference_high:+.4f}"
        unit = f" (1 is an error of {self.max_error:.4g})" if self.max_error else ""
        return f"{counts}: {bounds}{unit}, {self._conclusion}"

    @property
    def _conclusion(self) -> str:
        if self.verdict is Verdict.HARMFUL:
            return "which proves harm"
        if self.verdict is Verdict.HARMLESS:
            return f"which proves less harm than {self.margin:g}"
        return f"which must prove harm, or less harm than {self.margin:g}"


class OutcomeTest:
    """Tests the outcomes of one canary step after the other.

    Each step is a comparison of its own: within a step the shares of the requests are constant, so that
    requests at different times weigh the same for both versions. All steps together err with a probability of
    at most 1 - `canary_confidence`.
    """

    def __init__(self, board: OutcomeBoard, limits: RolloutSettings, steps: int) -> None:
        self._board, self._limits = board, limits
        self._alpha = (1 - limits.canary_confidence) / steps
        self._number, self._pair = 0, _NO_PAIR
        self._has_outcomes = False

    def start_step(self, new: LoadedModel, old: LoadedModel | None) -> None:
        """Count the outcomes of predictions from now on."""
        self._board.close(self._number)
        if old is not None:
            self._pair = new.version.identity, old.version.identity
            since, max_error = datetime.now(UTC), self._limits.canary_max_error
            self._number = self._board.open(OutcomeQuery(new.version, old.version, since, max_error))

    def end(self) -> None:
        """Forget the outcomes; the next step begins another canary."""
        self._board.close(self._number)
        self._number, self._pair, self._has_outcomes = 0, _NO_PAIR, False

    def evidence(self, new: LoadedModel, old: LoadedModel) -> Evidence | None:
        """Return the result so far; None if the canary does not depend on outcomes."""
        if not self._board.is_recorded:
            return None
        if self._pair != (new.version.identity, old.version.identity):  # another version is the primary now
            self.start_step(new, old)
        sums = self._board.result(self._number)
        self._has_outcomes |= bool(sums.new.count or sums.old.count)
        if not self._has_outcomes and not self._limits.canary_min_outcomes:
            return None
        return compare(sums, self._limits, self._alpha)


def compare(sums: OutcomeSums, limits: RolloutSettings, alpha: float) -> Evidence:
    """Return the evidence of the outcomes so far.

    Less harm than the margin counts as harmless, also if harm is proven: the margin is what the operator
    accepts.
    """
    new, old = sums.new, sums.old
    bounds = difference_bounds((new.count, new.loss), (old.count, old.loss), alpha)
    verdict = Verdict.WAITING
    if bounds.high < limits.canary_margin and min(new.count, old.count) >= limits.canary_min_outcomes:
        verdict = Verdict.HARMLESS
    elif bounds.low > 0 and bounds.high >= limits.canary_margin:
        verdict = Verdict.HARMFUL
    losses = _mean(new), _mean(old)
    edges = bounds.low, bounds.high
    return Evidence(verdict, new.count, old.count, *losses, *edges, limits.canary_margin, sums.max_error)


def _mean(loss: LossSum) -> float | None:
    return loss.loss / loss.count if loss.count else None
