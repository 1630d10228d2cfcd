"""The sums over the feedback on a version, from which its quality is computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from sqlalchemy import Row

from serving.journal.outcome_scores import Score


@dataclass(slots=True)
class Sums:
    """Exact sums, so that a corrected outcome leaves no rounding error."""

    feedback: int
    classed: int
    correct: int
    measured: int
    absolute_errors: Fraction
    squared_errors: Fraction

    @classmethod
    def of(cls, row: Row[Any]) -> Sums:
        """Return the sums in a row of `versions`."""
        errors = Fraction(row.absolute_errors), Fraction(row.squared_errors)
        return cls(row.feedback, row.classed, row.correct, row.measured, *errors)

    def add(self, score: Score, sign: int = 1) -> None:
        """Add a score, or subtract it with a `sign` of -1."""
        self.feedback += sign
        if score.correct is not None:
            self.classed += sign
            self.correct += sign * score.correct
        if score.error is not None:
            self.measured += sign
            self.absolute_errors += sign * Fraction(abs(score.error))
            self.squared_errors += sign * Fraction(score.error**2)

    @property
    def columns(self) -> dict[str, int | str]:
        """Return the values of the row's columns."""
        errors = {"absolute_errors": str(self.absolute_errors), "squared_errors": str(self.squared_errors)}
        return asdict(self) | errors
