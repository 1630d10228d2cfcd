"""Parse the rules in the registered model's tag `serving.require`."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from serving.errors import ServingError

MAX_RULES = 20
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_QUOTED = r"""(?:"(?:[^"]|"")*+"|'(?:[^']|'')*+')"""
"""A text in quotes; a doubled quote stands for itself."""
# Quotes begin a text only at the start of a part, so that an apostrophe within a name has no meaning. The
# possessive quantifier prevents backtracking, whose time could grow exponentially.
_BRACKETS = rf"\[(?:(?<=[\[,=])\s*{_QUOTED}|[^\[\];\n])*+\]"
_RULE_TEXT = re.compile(rf"(?:{_BRACKETS}|[^;\n])+")
_RULE = re.compile(rf"([A-Za-z]\w*)\s*({_BRACKETS})?\s*(>=|<=)\s*(\S.*)", re.ASCII | re.DOTALL)
_RULE_START = re.compile(rf"(?:[A-Za-z]\w*\s*(?:{_BRACKETS}\s*)?(?:(?:>=|<=)\s*)?)?", re.ASCII)
_PART = re.compile(rf"\s*({_QUOTED}|[^,=]*?)\s*(?:=\s*({_QUOTED}|[^,]*?)\s*)?(?:,|$)")
_SIMPLE_NAME = re.compile(r"""[^\s"'\[\],;=](?:[^\[\],;=\n]*[^\s\[\],;=])?""")
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
RANGES = dict.fromkeys(HIGHER_IS_BETTER, (0.0, 1.0)) | {
    **dict.fromkeys(["log_loss", "mae", "mse", "rmse", "p50_ms", "p95_ms", "p99_ms"], (0.0, math.inf)),
    "brier_score": (0.0, 2.0),
    "r2": (-math.inf, 1.0),
}
"""The least and greatest value of each metric; the Brier score is up to 2 for more than two classes."""


class InvalidRule(ServingError):
    """A rule cannot be parsed; the message quotes it, and states the position in the tag from 1."""


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
        written: the text of each part of `where` that may be the name of a class instead, such as `<=50K`;
            empty for other parts. `resolve` decides.
    """

    metric: str
    label: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    written: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        inside = [] if self.label is None else [_shown(self.label)]
        inside += [f"{_shown(name)}={_shown(value)}" for name, value in self.where]
        return f"{self.metric}[{', '.join(inside)}]" if inside else self.metric

    def resolved(self, columns: Container[str], classes: Container[str]) -> Quantity:
        """Return the quantity with the class that a part names, if it names no column."""
        for part, text in zip(self.where, self.written, strict=False):
            if self.label is None and text and part[0] not in columns and text in classes:
                rest = tuple(other for other in self.where if other != part)
                return Quantity(self.metric, text, rest)
        return self


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
        InvalidRule: one of them cannot be parsed.
    """
    found = [(match.start(), match[0]) for match in _RULE_TEXT.finditer(text) if match[0].strip()]
    if not found:
        raise InvalidRule("the tag contains no rule, for example accuracy >= champion - 0.005")
    if len(found) > MAX_RULES:
        raise InvalidRule(f"the tag contains {len(found)} rules; at most {MAX_RULES} are allowed")
    return [_Parser(rule.strip(), start + len(rule) - len(rule.lstrip())).parse() for start, rule in found]


def resolve(rules: Sequence[Rule], columns: Container[str], classes: Container[str]) -> list[Rule]:
    """Return the rules in their meaning for labelled rows.

    Without quotes, `recall[<=50K]` is about the class `<=50K` if there is one, and no column `<`.

    Args:
        rules: the rules.
        columns: the columns of the rows.
        classes: the names of the classes.
    """
    return [replace(rule, quantity=rule.quantity.resolved(columns, classes)) for rule in rules]


@dataclass(frozen=True, slots=True)
class _Parser:
    """Parses one rule.

    Args:
        text: the rule.
        start: its position in the tag, from 0.
    """

    text: str
    start: int

    def parse(self) -> Rule:
        match = _RULE.fullmatch(self.text)
        if match is None:
            raise self._malformed()
        name, inside, operator, bound = match.groups()
        quantity = self._quantity(name, (inside or "")[1:-1], match.start(2) + 1)
        place = match.start(4)
        rule = Rule(self.text, quantity, Operator(operator), *self._bound(bound, place))
        if HIGHER_IS_BETTER[quantity.metric] != (rule.operator is Operator.AT_LEAST):
            better = ">=" if HIGHER_IS_BETTER[quantity.metric] else "<="
            raise self._error(f" has the wrong direction: {quantity.metric} needs {better}", match.start(3))
        self._check_range(rule, place)
        return rule

    def _malformed(self) -> InvalidRule:
        match = _RULE_START.match(self.text)
        place = match.end() if match else 0
        if self.text[place : place + 1] == "[":
            problem = " is not a rule: close the bracket, and quote a name with one of [ ] ; , ="
            return self._error(f'{problem} as in recall["a;b"]', place)
        return self._error(" is not a rule: write a metric, >= or <=, and a bound", place)

    def _quantity(self, name: str, inside: str, place: int) -> Quantity:
        metric = _SYNONYMS.get(name, name)
        if metric not in HIGHER_IS_BETTER:
            raise self._error(f" has an unknown metric; known are {', '.join(HIGHER_IS_BETTER)}", 0)
        label, where, written = None, dict[str, str](), list[str]()
        for match in _parts(inside) if place else ():
            key, is_quoted = self._name(match[1], place + match.start(1))
            if match[2] is not None:
                value, is_value_quoted = self._name(match[2], place + match.start(2))
                is_class = metric in _PER_CLASS and not is_quoted and not is_value_quoted
                if (key or is_quoted) and (value or is_value_quoted) and key not in where:
                    where[key] = value
                    written.append(match[0].removesuffix(",").strip() if is_class else "")
                    continue
            elif (key or is_quoted) and label is None and metric in _PER_CLASS:
                label = key
                continue
            raise self._error(
                " has an invalid part in brackets: write a class after precision, recall or f1, and "
                "column=value for a slice",
                place + match.start(),
            )
        if metric.endswith("_ms") and where:
            raise self._error(": latencies have no slices", place)
        return Quantity(metric, label, tuple(where.items()), tuple(written))

    def _name(self, text: str, place: int) -> tuple[str, bool]:
        """Return a name without quotes, and whether it had them."""
        if text[:1] not in ("'", '"') or not text:
            return text, False
        if not re.fullmatch(_QUOTED, text):
            raise self._error(" has a quote that is not closed, or is followed by text", place)
        return text[1:-1].replace(2 * text[0], text[0]), True

    def _bound(self, bound: str, place: int) -> tuple[float, float]:
        """Return the factor of the champion's value, and the offset."""
        if _NUMERIC_BOUND.fullmatch(bound):
            return 0.0, float(bound)
        match = _CHAMPION_BOUND.fullmatch(bound)
        if match is None or (match[1] and match[2]):
            raise self._error(
                " has an invalid bound: write a number, champion, champion - 0.005 or 1.02 * champion", place
            )
        factor = float(match[1] or match[2] or 1)
        if factor <= 0:
            raise self._error(" must multiply the champion's value by a positive number", place)
        return factor, float(f"{match[3]}{match[4]}") if match[3] else 0.0

    def _check_range(self, rule: Rule, place: int) -> None:
        """Reject a bound that every version meets, or none."""
        metric, operator, offset = rule.quantity.metric, rule.operator.value, rule.offset
        low, high = RANGES[metric]
        if rule.uses_champion:
            if abs(offset) > high - low:
                example = f"{metric} {operator} champion {'-' if rule.sign > 0 else '+'} 0.005"
                raise self._error(
                    f" differs from the champion by more than {high - low:g}, the range of {metric}: write "
                    f"for example {example}",
                    place,
                )
        elif not low <= offset <= high:
            percent = (
                offset / 100 if (low, high) == (0, 1) and 1 < offset <= 100 else 0.9 if rule.sign > 0 else 0.1
            )
            raise self._error(
                f" has a bound outside the range of {metric}, {_range(low, high)}: write for example "
                f"{metric} {operator} {percent:g}",
                place,
            )

    def _error(self, problem: str, place: int) -> InvalidRule:
        position = self.start + place + 1
        return InvalidRule(f"the rule {self.text[:100]!r}{problem} (character {position})")


def _parts(inside: str) -> Iterator[re.Match[str]]:
    """Yield the parts in brackets, which commas separate."""
    place = 0
    while match := _PART.match(inside, place):
        yield match
        place = match.end()
        if not match[0].endswith(","):
            return


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def _shown(name: str) -> str:
    """Return a name as rules have it, in quotes if necessary."""
    quoted = name.replace('"', '""')
    return name if _SIMPLE_NAME.fullmatch(name) else f'"{quoted}"'
