"""Labels and predictions of labelled rows as a table that travels to the process of the statistics.

Labels and predictions are compared as numbers for the metrics of regressors, and as names of classes for the
metrics of classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, types

from serving.evaluation.class_alignment import Alignment, VersionClasses, align
from serving.evaluation.class_codes import Values, resolve, values
from serving.evaluation.intervals import Floats, Indices
from serving.evaluation.metrics import REGRESSION_METRICS
from serving.evaluation.outcomes import Mask, NotComputable, Outcomes
from serving.evaluation.slices import equals


class OutputKind(StrEnum):
    """The meaning of a model's output."""

    PROBABILITIES = "probabilities"
    """One number per class."""
    CLASSES = "classes"
    """The index of a class, or its name."""
    NUMBER = "number"
    VALUE = "value"
    """A number or a class; the metadata of the model does not state which."""


@dataclass(frozen=True)
class VersionSample:
    """The predictions of one version, and the times of its calls of one row.

    Args:
        kind: the meaning of `predicted`.
        predicted: one column; for probabilities one column per class.
        classes: the names of the classes; empty for numbers and values.
        latencies: the times in milliseconds.
    """

    kind: OutputKind
    predicted: Sequence[pa.Array]
    classes: Sequence[str] = ()
    latencies: Sequence[float] = ()

    @cached_property
    def _values(self) -> Values:
        return values(self.predicted[0])

    @cached_property
    def own_classes(self) -> VersionClasses:
        """The declared classes, or else the predicted values.

        Raises:
            NotComputable: the model predicts numbers, or values that are no classes.
        """
        if self.kind is OutputKind.NUMBER:
            raise NotComputable("the metric needs a classifier, but the model predicts numbers")
        if self.classes:
            return VersionClasses(self.classes, are_declared=True)
        return VersionClasses(self._values.texts, are_declared=False)

    def codes(self, places: Sequence[int]) -> Indices:
        """Return the class of each row from the code of each own class."""
        if self.probabilities is not None:
            best: Indices = np.array(places, np.intp)[self.probabilities.argmax(axis=1)]
            return best
        if not self.classes:
            return self._values.codes(places)
        prefer_ids = types.is_integer(self.predicted[0].type)
        found, _ = resolve(self._values.texts, self.classes, prefer_ids=prefer_ids)
        return self._values.codes([None if own is None else places[own] for own in found])

    @property
    def epsilon(self) -> float:
        """The least probability that the type of the predictions distinguishes from 0 and 1."""
        kind = self.predicted[0].type
        return float(np.finfo(kind.to_pandas_dtype() if types.is_floating(kind) else np.float64).eps)

    @cached_property
    def probabilities(self) -> Floats | None:
        """The probabilities, of shape (rows, classes); None if the model returns none."""
        if self.kind is not OutputKind.PROBABILITIES:
            return None
        return np.column_stack([_floats(array) for array in self.predicted])


@dataclass(frozen=True)
class Sample:
    """Labelled rows with the predictions of a candidate, and of a champion if one is live.

    Args:
        labels: the column of labels.
        columns: the columns of the rows by which rules select slices.
        candidate: the predictions of the version that was promoted.
        champion: the predictions of the live version; None if there are none.
        champion_fault: why there are none.
    """

    labels: pa.Array
    columns: Mapping[str, pa.Array]
    candidate: VersionSample
    champion: VersionSample | None = None
    champion_fault: str = ""

    @cached_property
    def _alignment(self) -> Alignment:
        versions = [self.candidate.own_classes]
        with suppress(NotComputable):  # a fault of the champion concerns its own outcomes only
            versions += [self.champion.own_classes] if self.champion else []
        return align(values(self.labels), *versions)

    def outcomes(self, version: VersionSample, metric: str, mask: Mask | None = None) -> Outcomes:
        """Return the labels and predictions of a version, or of some rows, in the form that a metric needs.

        Raises:
            NotComputable: they have another form.
            NoEvidence: no label is a class of the version.
        """
        mask = np.ones(len(self.labels), bool) if mask is None else mask
        if metric in REGRESSION_METRICS:
            if version.kind in (OutputKind.PROBABILITIES, OutputKind.CLASSES):
                raise NotComputable(f"{metric} needs numbers, but the model predicts classes")
            return Outcomes(_floats(self.labels, mask), _floats(version.predicted[0], mask))
        own, aligned = version.own_classes, self._alignment
        places = aligned.places_of(own)
        probabilities = version.probabilities
        if probabilities is not None and [*places] != [*range(aligned.width)]:
            widened = np.zeros((len(probabilities), aligned.width))
            widened[:, places] = probabilities
            probabilities = widened
        predicted = version.codes(places)
        outcomes = Outcomes(
            aligned.labels, predicted, aligned.names, probabilities, aligned.declared, version.epsilon
        )
        return outcomes.where(mask)

    def mask(self, where: Sequence[tuple[str, str]]) -> Mask:
        """Return which rows have these values in these columns.

        Raises:
            NotComputable: a column is missing.
        """
        mask = np.ones(len(self.labels), bool)
        for name, value in where:
            if name not in self.columns:
                raise NotComputable(f"the labelled rows have no column {name}")
            mask &= equals(self.columns[name], value)
        return mask


def _floats(array: pa.Array, mask: Mask | None = None) -> Floats:
    """Return numbers of some rows.

    Raises:
        NotComputable: they are none, or one is missing or not finite.
    """
    try:
        numbers: Floats = compute.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        raise NotComputable(f"the metric needs numbers, but there are values of type {array.type}") from None
    faulty = ~np.isfinite(numbers) if mask is None else ~np.isfinite(numbers) & mask
    if faulty.any():
        row = int(np.flatnonzero(faulty)[0])
        raise NotComputable(f"row {row + 1} has a value or a prediction that is missing or not finite")
    return numbers if mask is None else numbers[mask]


# -- encoding

_PREFIXES = ("candidate", "champion")


def encode(sample: Sample) -> tuple[dict[str, Any], pa.RecordBatch]:
    """Return the facts of a sample in JSON types, and its columns as a table."""
    columns: dict[str, pa.Array] = {"label": sample.labels}
    columns |= {f"column {name}": array for name, array in sample.columns.items()}
    facts: dict[str, Any] = {"champion_fault": sample.champion_fault}
    for prefix, version in zip(_PREFIXES, (sample.candidate, sample.champion), strict=True):
        if version:
            columns |= {f"{prefix} {index}": array for index, array in enumerate(version.predicted)}
            facts[prefix] = {
                "kind": version.kind,
                "classes": [*version.classes],
                "latencies": [*version.latencies],
                "width": len(version.predicted),
            }
    return facts, pa.RecordBatch.from_arrays([*columns.values()], names=[*columns])


def decode(facts: Mapping[str, Any], table: pa.RecordBatch) -> Sample:
    """Return what `encode` has encoded."""
    versions = [
        VersionSample(
            OutputKind(facts[prefix]["kind"]),
            [table.column(f"{prefix} {index}") for index in range(facts[prefix]["width"])],
            facts[prefix]["classes"],
            facts[prefix]["latencies"],
        )
        if prefix in facts
        else None
        for prefix in _PREFIXES
    ]
    candidate, champion = versions
    assert candidate is not None
    prefix = "column "
    columns = {
        name.removeprefix(prefix): table.column(name)
        for name in table.schema.names
        if name.startswith(prefix)
    }
    return Sample(table.column("label"), columns, candidate, champion, facts["champion_fault"])
