"""Decide which rules hold on labelled rows, by confidence bounds: plain functions over values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pyarrow import types

from serving.evaluation import metrics, unseen
from serving.evaluation.intervals import (
    Floats,
    Interval,
    bootstrap_interval,
    group,
    paired_rate_interval,
    quantile_difference_interval,
    quantile_interval,
    rate_interval,
)
from serving.evaluation.outcomes import NoEvidence, NotComputable, Outcomes, Terms
from serving.evaluation.rules import Rule
from serving.evaluation.samples import OutputKind, Sample, VersionSample
from serving.evaluation.slices import examples

_UNBOUNDED = Interval(math.nan, -math.inf, math.inf, "none")
_PERCENT = 100
_MEANS = ("balanced_accuracy", "f1", "roc_auc")
_MAX_SUMMARIZED_CLASSES = 100
"""Means over more classes are computed only if a rule needs them."""
_NO_VALUE = {
    "recall": " (no row has the class)",
    "precision": " (no row is predicted as the class)",
    "f1": " (no row has the class or is predicted as it)",
    "r2": " (all labels are equal)",
}


class Decision(StrEnum):
    """The decision about one rule."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "not enough evidence"
    SKIPPED = "no champion"
    """The rule compares with a champion, and no version is live."""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The decision about one rule, and its evidence.

    Args:
        rule: the rule as it was written.
        decision: the decision.
        sentence: the decision and its evidence for people.
        value: the metric of the candidate; None if it could not be computed.
        champion: the metric of the champion, if the rule compares with it.
        low, high: the confidence bounds of the value, or of the difference from the champion's value that the
            rule bounds; None if there is no bound.
        method: how the bounds were computed.
        rows: the number of labelled rows, or of timed calls.
    """

    rule: str
    decision: Decision
    sentence: str
    value: float | None = None
    champion: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    rows: int = 0


def judge(rules: Sequence[Rule], sample: Sample, level: float) -> list[RuleResult]:
    """Return the decision about each rule.

    Args:
        rules: the rules.
        sample: the labelled rows and the predictions.
        level: the one-sided confidence level of each bound.
    """
    return [_judge(rule, sample, level) for rule in rules]


def _judge(rule: Rule, sample: Sample, level: float) -> RuleResult:
    champion = sample.champion
    if rule.uses_champion and not champion:
        if sample.champion_fault:
            text = f"{rule.text} has not enough evidence: {sample.champion_fault}"
            return RuleResult(rule.text, Decision.UNDECIDED, text)
        text = f"{rule.text} does not apply yet, because no version is live"
        return RuleResult(rule.text, Decision.SKIPPED, text)
    measure = _time if rule.quantity.metric.endswith("_ms") else _score
    try:
        value, champion_value, interval, rows = measure(rule, sample, level)
    except NoEvidence as error:
        text = f"{rule.text} has not enough evidence: {error}"
        return RuleResult(rule.text, Decision.UNDECIDED, text)
    except NotComputable as error:
        return RuleResult(rule.text, Decision.FAILS, f"{rule.text} cannot be computed: {error}")
    decision = _decide(rule, interval)
    sentence = _sentence(rule, decision, value, champion_value, interval, rows, level)
    low, high = (bound if math.isfinite(bound) else None for bound in (interval.low, interval.high))
    shown = value if math.isfinite(value) else None
    return RuleResult(rule.text, decision, sentence, shown, champion_value, low, high, interval.method, rows)


def _decide(rule: Rule, interval: Interval) -> Decision:
    supported, possible = (interval.low, interval.high) if rule.sign > 0 else (-interval.high, -interval.low)
    bound = rule.sign * rule.offset
    if supported >= bound:
        return Decision.HOLDS
    return Decision.FAILS if possible < bound else Decision.UNDECIDED


Measured = tuple[float, float | None, Interval, int]
"""The candidate's value, the champion's, the interval to compare with the offset, and the number of rows."""


def _score(rule: Rule, sample: Sample, level: float) -> Measured:
    quantity, mask = rule.quantity, sample.mask(rule.quantity.where)
    rows = int(mask.sum())
    if not rows:
        raise NoEvidence(f"there are no rows for {quantity}{_existing(rule, sample)}")
    new = sample.outcomes(sample.candidate, quantity.metric, mask)
    if not rule.uses_champion or sample.champion is None:
        interval = _clip(_absolute(rule, new, level), metrics.limits(quantity.metric, new))
        return interval.value, None, interval, rows
    new_terms = metrics.terms(quantity.metric, quantity.label, new)
    value = new_terms.value()
    if not math.isfinite(value):
        return value, None, _UNBOUNDED, rows
    try:
        old = sample.outcomes(sample.champion, quantity.metric, mask)
        old_terms = metrics.terms(quantity.metric, quantity.label, old)
    except (NotComputable, NoEvidence) as error:  # no fault of the candidate
        raise NoEvidence(f"the champion's predictions cannot be compared: {error}") from error
    champion_value = old_terms.value()
    _check_champion(rule, champion_value)
    exact = _paired_rate(rule, new, old, level)
    return value, champion_value, exact or _paired(rule, new_terms, old_terms, level), rows


def _check_champion(rule: Rule, value: float) -> None:
    if not math.isfinite(value):
        raise NoEvidence(f"{rule.quantity} of the champion has no value on these rows")
    if value < 0 and rule.factor != 1:  # the bound would be stricter, or laxer, than the rule means
        raise NoEvidence(
            f"{rule.quantity} of the champion is {value:.4g}, and a factor has no meaning for a negative "
            f"value: write for example {rule.quantity} {rule.operator.value} champion - 0.02"
        )


def _existing(rule: Rule, sample: Sample) -> str:
    """Return values of the columns that have none of the rule's, as a part of a sentence."""
    missing = [name for name, value in rule.quantity.where if not sample.mask([(name, value)]).any()]
    known = ((name, examples(sample.columns[name])) for name in missing)
    return "".join(f"; {name} has the values {texts}" for name, texts in known if texts)


def _absolute(rule: Rule, outcomes: Outcomes, level: float) -> Interval:
    quantity = rule.quantity
    terms = metrics.terms(quantity.metric, quantity.label, outcomes)
    if rate := metrics.rate(quantity.metric, quantity.label, outcomes):
        rows = int(rate.counted.sum())
        if not rows:
            return _UNBOUNDED
        exact = rate_interval(int(rate.correct.sum()), rows, level)
        value, low, high = rate.link(np.array([exact.value, exact.low, exact.high])).tolist()
        return Interval(value, low, high, exact.method)
    margins = unseen.combine(terms.margins(1 - level))
    sums = terms.sums(*group(len(outcomes)))
    return bootstrap_interval(sums, terms.statistic, level, rows=len(outcomes), margins=margins)


def _clip(interval: Interval, limits: tuple[float, float]) -> Interval:
    """Return the interval with bounds that the metric can have; a missing bound stays missing."""
    low, high = (
        min(max(bound, limits[0]), limits[1]) if math.isfinite(bound) else bound
        for bound in (interval.low, interval.high)
    )
    return Interval(interval.value, low, high, interval.method)


def _paired_rate(rule: Rule, new: Outcomes, old: Outcomes, level: float) -> Interval | None:
    """Return the interval of the difference of two rates of the same rows; None for other metrics."""
    quantity = rule.quantity
    first, second = (metrics.rate(quantity.metric, quantity.label, outcomes) for outcomes in (new, old))
    if rule.factor != 1 or not first or not second or not first.is_paired:
        return None
    only_new = int((first.correct & ~second.correct).sum())
    only_old = int((second.correct & ~first.correct).sum())
    rows = int(first.counted.sum())
    return paired_rate_interval(only_new, only_old, rows, level) if rows else _UNBOUNDED


def _paired(rule: Rule, new: Terms, old: Terms, level: float) -> Interval:
    """Return the interval of the candidate's value minus `factor` times the champion's."""
    sums = [terms.sums(*group(new.rows)) for terms in (new, old)]
    split = sums[0].shape[1]

    def difference(totals: Floats) -> Floats:
        return new.statistic(totals[:, :split]) - rule.factor * old.statistic(totals[:, split:])

    margins = unseen.of_difference(new.margins(1 - level), old.margins(1 - level), rule.factor)
    return bootstrap_interval(
        np.column_stack(sums), difference, level, rows=new.rows, margins=unseen.combine(margins)
    )


def _time(rule: Rule, sample: Sample, level: float) -> Measured:
    share = int(rule.quantity.metric[1:].removesuffix("_ms")) / _PERCENT
    new = np.array(sample.candidate.latencies)
    if not len(new):
        return math.nan, None, _UNBOUNDED, 0
    value = quantile_interval(new, share, level)
    if not rule.uses_champion or sample.champion is None:
        return value.value, None, value, len(new)
    old = np.array(sample.champion.latencies)
    if not len(old):
        return value.value, None, _UNBOUNDED, len(new)
    difference = quantile_difference_interval(new, old, rule.factor, share, level)
    return value.value, float(np.quantile(old, share)), difference, len(new)


# -- sentences


def _sentence(
    rule: Rule,
    decision: Decision,
    value: float,
    champion: float | None,
    interval: Interval,
    rows: int,
    level: float,
) -> str:
    unit = "timed calls" if rule.quantity.metric.endswith("_ms") else "rows"
    if not rows:
        return f"there are no {unit} for {rule.quantity}, and so not enough evidence for {rule.text}"
    if not math.isfinite(value):
        fact = f"{rule.quantity} has no value on {rows:,} rows{_NO_VALUE.get(rule.quantity.metric, '')}"
        return f"{fact}, which is not enough evidence for {rule.text}"
    finite = math.isfinite(interval.low) or math.isfinite(interval.high)
    limits = f"{interval.low:.4g} to {interval.high:.4g}"
    if decision is Decision.HOLDS:  # short: the reason of a version lists all of its rules
        against = "" if champion is None else f" against {champion:.4g}, difference"
        return f"{rule.text} ({value:.4g}{against or ','} {limits})"
    span = f" ({level * _PERCENT:.4g} % bounds {limits})" if finite else ""
    if champion is None:
        fact = f"{rule.quantity} is {value:.4g}{span}"
    else:
        factor = "" if rule.factor == 1 else f"{rule.factor:g} times "
        fact = (
            f"{rule.quantity} is {value:.4g} and the champion's is {champion:.4g}, the difference from "
            f"{factor}the champion's is {interval.value:.4g}{span}"
        )
    if decision is Decision.UNDECIDED:
        return f"{fact} on {rows:,} {unit}, which is not enough evidence for {rule.text}"
    return f"{fact}, and {rule.text} is required"


# -- a summary for MLflow


def summarize(sample: Sample, version: VersionSample) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a version on all rows that can be computed, by name."""
    names = ["accuracy", "balanced_accuracy", "f1", "log_loss", "roc_auc", "mae", "rmse", "r2"]
    is_number = version.kind is OutputKind.VALUE and types.is_floating(version.predicted[0].type)
    for name in names:
        if is_number and name not in metrics.REGRESSION_METRICS:
            continue
        try:
            outcomes = sample.outcomes(version, name)
            if name in _MEANS and len(outcomes.scored) > _MAX_SUMMARIZED_CLASSES:
                continue
            value = metrics.terms(name, None, outcomes).value()
        except (NotComputable, NoEvidence):
            continue
        if math.isfinite(value):
            yield name, value
    for share in (0.5, 0.95):
        if len(version.latencies):
            yield f"p{share * _PERCENT:.0f}_ms", float(np.quantile(version.latencies, share))


def confusion(sample: Sample, max_classes: int = 50) -> tuple[list[str], list[list[int]]] | None:
    """Return the classes and the counts by actual and predicted class; None if the model names none."""
    try:
        outcomes = sample.outcomes(sample.candidate, "accuracy")
    except (NotComputable, NoEvidence):
        return None
    classes = outcomes.classes
    if not sample.candidate.classes or len(classes) > max_classes:
        return None
    counts = np.zeros((len(classes), len(classes)), np.int64)
    known = outcomes.predicted >= 0
    np.add.at(counts, (outcomes.labels[known], outcomes.predicted[known]), 1)
    return [*classes], counts.tolist()
