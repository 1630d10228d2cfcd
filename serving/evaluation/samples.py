"""Labels and predictions of labelled rows as a table that travels to the process of the statistics.

Labels and predictions are compared as numbers for the metrics of regressors, and as names of classes for the
metrics of classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute, types

from serving.evaluation.intervals import Floats
from serving.evaluation.metrics import REGRESSION_METRICS
from serving.evaluation.outcomes import NotComputable, Outcomes

Names: TypeAlias = npt.NDArray[np.str_]
Mask: TypeAlias = npt.NDArray[np.bool_]


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
    def names(self) -> Names:
        """The predicted classes.

        Raises:
            NotComputable: the model predicts numbers.
        """
        if self.kind is OutputKind.NUMBER:
            raise NotComputable("the metric needs a classifier, but the model predicts numbers")
        if self.probabilities is not None:
            best: Names = np.array(self.classes)[self.probabilities.argmax(axis=1)]
            return best
        return _names(self.predicted[0], self.classes, ids_first=True)

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
    def _labelled_names(self) -> Names:
        return _names(self.labels, self.candidate.classes, ids_first=False)

    @cached_property
    def _classes(self) -> list[str]:
        """All classes, in the order of the candidate's: those of the champion and of the labels follow."""
        known = [*self.candidate.classes]
        for names in [self._labelled_names, *(version.names for version in self._versions)]:
            known += sorted({*np.unique(names).tolist()} - {*known})
        more = [name for version in self._versions for name in version.classes]
        return [*known, *dict.fromkeys(name for name in more if name not in known)]

    @property
    def _versions(self) -> list[VersionSample]:
        return [self.candidate, *([self.champion] if self.champion else [])]

    def outcomes(self, version: VersionSample, metric: str) -> Outcomes:
        """Return the labels and predictions of a version in the form that a metric needs.

        Raises:
            NotComputable: they have another form.
        """
        if metric in REGRESSION_METRICS:
            if version.kind in (OutputKind.PROBABILITIES, OutputKind.CLASSES):
                raise NotComputable(f"{metric} needs numbers, but the model predicts classes")
            return Outcomes(_floats(self.labels), _floats(version.predicted[0]))
        classes, probabilities = self._classes, version.probabilities
        if probabilities is not None and list(version.classes) != classes:
            widened = np.zeros((len(probabilities), len(classes)))
            widened[:, [classes.index(name) for name in version.classes]] = probabilities
            probabilities = widened
        labels, predicted = _codes(self._labelled_names, classes), _codes(version.names, classes)
        return Outcomes(labels, predicted, classes, probabilities)

    def mask(self, where: Sequence[tuple[str, str]]) -> Mask:
        """Return which rows have these values in these columns.

        Raises:
            NotComputable: a column is missing.
        """
        mask = np.ones(len(self.labels), bool)
        for name, value in where:
            if name not in self.columns:
                raise NotComputable(f"the labelled rows have no column {name}")
            mask &= _equals(self.columns[name], value)
        return mask


def _equals(column: pa.Array, value: str) -> Mask:
    if types.is_boolean(column.type):
        value = value.capitalize()
    if types.is_floating(column.type):
        try:
            return np.asarray(_floats(column, nulls=True) == float(value))
        except ValueError:
            return np.zeros(len(column), bool)
    texts, places = _text(column)
    return np.array([text == value for text in texts])[places]


def _floats(array: pa.Array, *, nulls: bool = False) -> Floats:
    """Return numbers.

    Raises:
        NotComputable: they are none, or one is missing or not finite.
    """
    try:
        values: Floats = compute.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        raise NotComputable(f"the metric needs numbers, but there are values of type {array.type}") from None
    if not nulls and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise NotComputable(f"row {row + 1} has a value or a prediction that is missing or not finite")
    return values


def _text(array: pa.Array) -> tuple[Sequence[str], npt.NDArray[np.intp]]:
    """Return the distinct values as text, and the index of each row's value among them.

    A whole number has no fraction, and a truth value is True or False.

    Raises:
        NotComputable: values of this type are no classes.
    """
    try:
        encoded = array if types.is_dictionary(array.type) else array.dictionary_encode()
        values = encoded.dictionary
        is_whole = types.is_floating(values.type) and compute.all(
            compute.equal(compute.floor(values), values), skip_nulls=True, min_count=0
        )
        if is_whole and is_whole.as_py():
            values = compute.cast(values, pa.int64())
        texts = compute.cast(values, pa.string()).to_pylist()
    except pa.ArrowException:
        raise NotComputable(f"values of type {array.type} are no classes") from None
    if types.is_boolean(values.type):
        texts = [text and text.capitalize() for text in texts]
    indices = compute.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
    return [*(text or "" for text in texts), ""], indices.astype(np.intp)


def _names(array: pa.Array, classes: Sequence[str], *, ids_first: bool) -> Names:
    """Return the names of classes that are given by name, or by their index in `classes`."""
    texts, places = _text(array)
    present = texts[:-1]
    is_named = not classes or {*present} <= {*classes}
    is_id = all(text.isdecimal() and int(text) < len(classes) for text in present)
    if classes and is_id and (not is_named or (ids_first and types.is_integer(array.type))):
        texts = [*(classes[int(text)] for text in present), ""]
    return np.array(texts)[places]


def _codes(names: Names, classes: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the index of each name in `classes`."""
    codes = {name: index for index, name in enumerate(classes)}
    distinct, places = np.unique(names, return_inverse=True)
    return np.array([codes[name] for name in distinct.tolist()], np.intp)[places]


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
