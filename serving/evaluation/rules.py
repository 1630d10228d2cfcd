"""Parse the rules in the registered model's tag `serving.require`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from serving.errors import ServingError

MAX_RULES = 20
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RULE = re.compile(r"\s*([A-Za-z]\w*)\s*(?:\[([^\[\]]*)\])?\s*(>=|<=)\s*(.+?)\s*", re.ASCII | re.DOTALL)
_NUMERIC_BOUND = re.compile(_NUMBER)
_CHAMPION_BOUND = re.compile(
    rf"(?:({_NUMBER})\s*\*\s*)?champion(?:\s*\*\s*({_NUMBER}))?(?:\s*([+-])\s*({_NUMBER.removeprefix('[+-]?')}))?"
)

HIGHER_IS_BETTER = {
    "accuracy": True,
    "balanced_accuracy": True,
    "precision": True,
    "recall": True,
    "f1": True,
    "roc_auc": True,
    "log_loss": False,
    "brier_score": False,
    "calibration_error": False,
    "mae": False,
    "rmse": False,
    "mse": False,
    "r2": True,
    "p50_ms": False,
    "p95_ms": False,
    "p99_ms": False,
}
"""The metrics of rules. A value in milliseconds is a quantile of the time of a model call of one row."""
_SYNONYMS = {
    "accuracy_score": "accuracy",
    "balanced_accuracy_score": "balanced_accuracy",
    "brier_score_loss": "brier_score",
    "f1_score": "f1",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "precision_score": "precision",
    "r2_score": "r2",
    "recall_score": "recall",
    "roc_auc_score": "roc_auc",
    "root_mean_squared_error": "rmse",
}
"""The names of scikit-learn's functions."""
_PER_CLASS = {"precision", "recall", "f1"}


class InvalidRule(ServingError):
    """A rule cannot be parsed."""


class Operator(Enum):
    """The comparison of a metric with a bound."""

    AT_LEAST = ">="
    AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Quantity:
    """A metric, optionally of one class and of the rows with one value in a column.

    Args:
        metric: a name in `HIGHER_IS_BETTER`.
        label: the class, for `precision`, `recall` and `f1`; None for all classes.
        where: the values that columns of a slice's rows have.
    """

    metric: str
    label: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = [*([self.label] if self.label is not None else []), *(f"{k}={v}" for k, v in self.where)]
        return f"{self.metric}[{', '.join(inside)}]" if inside else self.metric


@dataclass(frozen=True, slots=True)
class Rule:
    """A bound on a quantity: a number, or `factor * champion + offset`.

    Args:
        text: the rule as it was written.
        factor: multiplies the champion's value; 0 if the bound is the number `offset`.
    """

    text: str
    quantity: Quantity
    operator: Operator
    factor: float
    offset: float

    @property
    def uses_champion(self) -> bool:
        """Check whether the bound depends on the champion's value."""
        return self.factor != 0

    @property
    def sign(self) -> int:
        """Return 1 if the bound is a minimum, -1 if it is a maximum."""
        return 1 if self.operator is Operator.AT_LEAST else -1


def parse_rules(text: str) -> list[Rule]:
    """Return the rules in a tag, which `;` or line breaks separate.

    Raises:
        InvalidRule: one of them cannot be parsed; the message quotes it.
    """
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    if not parts:
        raise InvalidRule("the tag contains no rule, for example accuracy >= champion - 0.005")
    if len(parts) > MAX_RULES:
        raise InvalidRule(f"the tag contains {len(parts)} rules; at most {MAX_RULES} are allowed")
    return [_parse_rule(part) for part in parts]


def _parse_rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise InvalidRule(f"{_quote(text)} is not a rule: write a metric, >= or <=, and a bound")
    name, inside, operator, bound = match.groups()
    quantity = _parse_quantity(text, name, inside)
    rule = Rule(text, quantity, Operator(operator), *_parse_bound(text, bound))
    if HIGHER_IS_BETTER[quantity.metric] != (rule.operator is Operator.AT_LEAST):
        better = ">=" if HIGHER_IS_BETTER[quantity.metric] else "<="
        raise InvalidRule(f"{_quote(text)} has the wrong direction: {quantity.metric} needs {better}")
    return rule


def _parse_quantity(text: str, name: str, inside: str | None) -> Quantity:
    metric = _SYNONYMS.get(name, name)
    if metric not in HIGHER_IS_BETTER:
        raise InvalidRule(f"{_quote(text)} has an unknown metric; known are {', '.join(HIGHER_IS_BETTER)}")
    label, where = None, {}
    for part in [] if inside is None else inside.split(","):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if separator and key and value and key not in where:
            where[key] = value
        elif key and not separator and label is None and metric in _PER_CLASS:
            label = key
        else:
            raise InvalidRule(
                f"{_quote(text)} has an invalid part in brackets: write a class after precision, recall or "
                "f1, and column=value for a slice"
            )
    if metric.endswith("_ms") and where:
        raise InvalidRule(f"{_quote(text)}: latencies have no slices")
    return Quantity(metric, label, tuple(where.items()))


def _parse_bound(text: str, bound: str) -> tuple[float, float]:
    """Return the factor of the champion's value, and the offset."""
    if _NUMERIC_BOUND.fullmatch(bound):
        return 0.0, float(bound)
    match = _CHAMPION_BOUND.fullmatch(bound)
    if match is None or (match[1] and match[2]):
        raise InvalidRule(
            f"{_quote(text)} has an invalid bound: write a number, champion, champion - 0.005 or "
            "1.02 * champion"
        )
    factor = float(match[1] or match[2] or 1)
    if factor <= 0:
        raise InvalidRule(f"{_quote(text)} must multiply the champion's value by a positive number")
    offset = float(f"{match[3]}{match[4]}") if match[3] else 0.0
    return factor, offset


def _quote(text: str) -> str:
    return f"the rule {text[:100]!r}"


def slices(rules: list[Rule]) -> Mapping[tuple[tuple[str, str], ...], list[Rule]]:
    """Return the rules by the slice of rows that they concern."""
    grouped: dict[tuple[tuple[str, str], ...], list[Rule]] = {}
    for rule in rules:
        grouped.setdefault(rule.quantity.where, []).append(rule)
    return grouped
