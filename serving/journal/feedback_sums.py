"""Sums over the feedback on a version, from which its quality is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from sqlalchemy import Row

from serving.journal.scoring import Score


@dataclass(slots=True)
class Sums:
    """They are exact, so that what is corrected leaves nothing behind."""

    feedback: int
    classed: int
    correct: int
    measured: int
    absolute_errors: Fraction
    squared_errors: Fraction

    @classmethod
    def of(cls, row: Row[Any]) -> Sums:
        """Those of a row of `versions`."""
        errors = Fraction(row.absolute_errors), Fraction(row.squared_errors)
        return cls(row.feedback, row.classed, row.correct, row.measured, *errors)

    def add(self, verdict: Score, sign: int = 1) -> None:
        """Add what a verdict says, or take it away."""
        self.feedback += sign
        if verdict.correct is not None:
            self.classed += sign
            self.correct += sign * verdict.correct
        if verdict.error is not None:
            self.measured += sign
            self.absolute_errors += sign * Fraction(abs(verdict.error))
            self.squared_errors += sign * Fraction(verdict.error**2)

    @property
    def columns(self) -> dict[str, int | str]:
        """What the row is to have."""
        told = {"absolute_errors": str(self.absolute_errors), "squared_errors": str(self.squared_errors)}
        return asdict(self) | told
