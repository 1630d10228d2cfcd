"""Metrics of predicted probabilities as functions of sums over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from serving import calibration
from serving.evaluation import unseen
from serving.evaluation.intervals import Floats
from serving.evaluation.outcomes import Mask, NoEvidence, NotComputable, Outcomes, Terms, mean_of, of_columns


def _need_probabilities(outcomes: Outcomes, metric: str) -> Floats:
    if outcomes.probabilities is None:
        raise NotComputable(f"{metric} needs probabilities, which the model does not return")
    return outcomes.probabilities


def _of_label(probabilities: Floats, outcomes: Outcomes) -> Floats:
    """Return the probability of the true class of each row, 0 if the version does not know the label."""
    known = outcomes.labels < probabilities.shape[1]
    places = np.where(known, outcomes.labels, 0)
    return np.where(known, probabilities[np.arange(len(places)), places], 0.0)


def _log_loss(outcomes: Outcomes, label: str | None) -> Terms:
    probabilities = _need_probabilities(outcomes, "log_loss")
    known = probabilities[:, : len(outcomes.scored)]
    kinds = (known.max(axis=1), _of_label(probabilities, outcomes), known.min(axis=1))
    losses = [-np.log(np.clip(kind, outcomes.epsilon, 1 - outcomes.epsilon)) for kind in kinds]
    return mean_of(losses[1], partial(unseen.of_losses, losses))


def _brier(outcomes: Outcomes, label: str | None) -> Terms:
    """Return the Brier score: of two classes that of the positive one, else the sum over the classes."""
    probabilities = _need_probabilities(outcomes, "brier_score")
    known = probabilities[:, : len(outcomes.scored)]
    if outcomes.is_binary:
        chance = known[:, 1]
        best, worst = np.minimum(chance, 1 - chance), np.maximum(chance, 1 - chance)
        distance = np.where(outcomes.labels == 1, 1 - chance, chance)
        losses = [best**2, np.where(outcomes.labels > 1, worst, distance) ** 2, worst**2]
    else:
        kinds = (known.max(axis=1), _of_label(probabilities, outcomes), known.min(axis=1))
        losses = [(probabilities**2).sum(axis=1) - 2 * kind + 1 for kind in kinds]
    return mean_of(losses[1], partial(unseen.of_losses, losses))


def _calibration(outcomes: Outcomes, label: str | None) -> Terms:
    """Return the expected calibration error of the predicted class, in bins of equal width."""
    confidence = _need_probabilities(outcomes, "calibration_error").max(axis=1)
    gaps, rows = confidence - outcomes.correct, len(confidence)
    bins = calibration.bins(confidence)

    def columns() -> Iterator[Floats]:
        yield from (np.where(bins == number, gaps, 0.0) for number in range(calibration.BINS))
        yield np.ones(rows)

    def statistic(sums: Floats) -> Floats:
        return calibration.calibration_error(sums[:, :-1], sums[:, -1])

    def margins(alpha: float) -> unseen.Margins:
        return np.full((2, 1), unseen.share(rows, alpha))  # a row changes the gap of its bin by at most 1

    return of_columns(columns, statistic, rows, margins)


def _roc_auc(outcomes: Outcomes, label: str | None) -> Terms:
    """Return the area under the ROC curve, linear in the terms of the rows (DeLong's components).

    For more than two classes it is the mean over the classes, each against the others.
    """
    probabilities = _need_probabilities(outcomes, "roc_auc")
    chosen = range(1, 2) if outcomes.is_binary else outcomes.scored
    positives = [outcomes.labels == index for index in chosen]
    counts = np.array([positive.sum() for positive in positives])
    for index, count in zip(chosen, counts, strict=True):
        if count in (0, len(outcomes)):
            raise NoEvidence(f"roc_auc needs rows of {outcomes.classes[index]} and rows of other classes")
    scores = probabilities.T[chosen.start : chosen.stop]
    kinds = [(each, _placements(score, each)) for score, each in zip(scores, positives, strict=True)]
    areas = np.array([component[positive].mean() for positive, component in kinds])

    def columns() -> Iterator[Floats]:
        for positive, component in kinds:
            yield from (positive * component, positive, ~positive * component, ~positive)

    def statistic(sums: Floats) -> Floats:
        hits, positive, passes, negative = (sums[:, start::4] for start in range(4))
        mean: Floats = (hits / positive + passes / negative - areas).mean(axis=1)
        return mean

    margins = partial(unseen.of_areas, areas, counts, len(outcomes) - counts)
    return of_columns(columns, statistic, len(outcomes), margins)


def _placements(scores: Floats, positive: Mask) -> Floats:
    """Return per row the share of rows of the other class that it is ordered rightly with."""
    ranks = _ranks(scores)
    component = np.empty(len(scores))
    count, rest = int(positive.sum()), int((~positive).sum())
    component[positive] = (ranks[positive] - _ranks(scores[positive])) / rest
    component[~positive] = 1 - (ranks[~positive] - _ranks(scores[~positive])) / count
    return component


def _ranks(scores: Floats) -> Floats:
    """Return the ranks from 1; equal scores have their mean rank. `scipy.stats` takes a second to import."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[inverse]
    return ranks


METRICS: Mapping[str, Callable[[Outcomes, str | None], Terms]] = {
    "log_loss": _log_loss,
    "brier_score": _brier,
    "calibration_error": _calibration,
    "roc_auc": _roc_auc,
}
