"""Read the predictions of a version that have outcomes, as arrays from which its quality is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
from sqlalchemy import Column, ColumnElement, Connection, Row, func, literal, select

from serving.codecs.prediction_schema import ClassLabels, PredictionSchema, Probabilities
from serving.journal.export import chunks
from serving.journal.schema import feedback, first_id, predictions
from serving.text import shorten

Floats: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]
Mask: TypeAlias = npt.NDArray[np.bool_]
MAX_ROWS = 20_000
"""The newest rows of a version that are read."""
_MAX_BYTES = 64 * 2**20
_IDS_PER_QUERY = 500
_MAX_VALUE_LENGTH = 60


@dataclass(frozen=True, slots=True)
class ClassRows:
    """True and predicted classes.

    Args:
        classes: the names of the classes.
        actual: the indices of the true classes, shape (rows,).
        predicted: the indices of the predicted classes, shape (rows,).
        probabilities: shape (rows, classes); None if the version returns none.
    """

    classes: Sequence[str]
    actual: Indices
    predicted: Indices
    probabilities: Floats | None = None

    def __len__(self) -> int:
        return len(self.actual)

    def where(self, mask: Mask) -> ClassRows:
        """Return some of the rows."""
        probabilities = None if self.probabilities is None else self.probabilities[mask]
        return ClassRows(self.classes, self.actual[mask], self.predicted[mask], probabilities)


@dataclass(frozen=True, slots=True)
class NumberRows:
    """True and predicted numbers, both of shape (rows,)."""

    actual: Floats
    predicted: Floats

    def __len__(self) -> int:
        return len(self.actual)

    def where(self, mask: Mask) -> NumberRows:
        """Return some of the rows."""
        return NumberRows(self.actual[mask], self.predicted[mask])


OutcomeRows: TypeAlias = ClassRows | NumberRows


@dataclass(frozen=True, slots=True)
class Pair:
    """The prediction for one row, and its outcome."""

    predicted: Any
    outcome: Any
    is_number: bool
    slices: tuple[str, ...]


def read(
    connection: Connection, version: int, since: datetime, columns: Sequence[str] = ()
) -> tuple[list[Pair], bool]:
    """Return the newest rows with outcomes that were predicted since a time, and whether there are more.

    Args:
        connection: the connection, within a transaction.
        version: the version's id in the journal.
        since: the time of the earliest prediction.
        columns: the input columns whose values are the `slices` of a pair, in this order.
    """
    joined = feedback.join(predictions, feedback.c.prediction == predictions.c.id)
    scored = feedback.c.correct.is_not(None) | feedback.c.error.is_not(None)
    query = (
        select(feedback.c.prediction, feedback.c.row, feedback.c.outcome, feedback.c.error)
        .select_from(joined)
        .where(predictions.c.version == version, feedback.c.prediction >= first_id(since), scored)
        .order_by(feedback.c.prediction.desc(), feedback.c.row)
        .limit(MAX_ROWS + 1)
    )
    known = [*connection.execute(query)]
    outcomes: dict[str, list[Row[Any]]] = {}
    for row in known[:MAX_ROWS]:
        outcomes.setdefault(row.prediction, []).append(row)
    pairs: list[Pair] = []
    is_complete = len(known) <= MAX_ROWS
    read = [predictions.c.outputs, *([predictions.c.inputs] if columns else [])]
    for ids in readable(connection, [*outcomes], read):
        if ids is None:
            return pairs, True
        for record in _records(connection, ids, with_inputs=bool(columns)):
            pairs += _pairs(record, outcomes[record.id], columns)
    return pairs, not is_complete


def readable(
    connection: Connection, ids: Sequence[str], columns: Sequence[Column[Any]], max_bytes: int = _MAX_BYTES
) -> Iterator[list[str] | None]:
    """Yield lists of ids whose data fits into memory; None at the end if the limit of bytes is reached.

    Args:
        connection: the connection, within a transaction.
        ids: the ids of predictions.
        columns: the columns of `predictions` that are read later.
        max_bytes: the limit for all lists together.
    """
    size: ColumnElement[int] = sum((func.length(column) for column in columns), literal(0))
    total = 0
    for start in range(0, len(ids), _IDS_PER_QUERY):
        part = ids[start : start + _IDS_PER_QUERY]
        query = select(predictions.c.id, size).where(predictions.c.id.in_(part))
        sizes = {row[0]: row[1] for row in connection.execute(query)}
        total += sum(sizes.values())
        if total > max_bytes:
            yield None
            return
        yield from chunks([(identity, sizes[identity]) for identity in part if identity in sizes])


def _records(connection: Connection, ids: Sequence[str], *, with_inputs: bool) -> Sequence[Row[Any]]:
    columns = [predictions.c.id, predictions.c.rows, predictions.c.outputs]
    columns += [predictions.c.inputs] if with_inputs else []
    return connection.execute(select(*columns).where(predictions.c.id.in_(ids))).all()


def _pairs(record: Row[Any], outcomes: Sequence[Row[Any]], columns: Sequence[str]) -> Iterator[Pair]:
    """Yield the rows of a prediction that have outcomes; none if it is one output for all rows."""
    outputs = orjson.loads(record.outputs)
    if len(outputs) != record.rows:
        return
    inputs = orjson.loads(record.inputs) if columns else []
    for row in outcomes:
        slices = tuple(_value(inputs, row.row, column) for column in columns)
        yield Pair(outputs[row.row], orjson.loads(row.outcome), row.error is not None, slices)


def _value(inputs: Any, row: int, column: str) -> str:
    """Return the value of an input column as text; empty if it is absent or no single value."""
    fields = inputs[row] if row < len(inputs) else None
    value = fields.get(column) if isinstance(fields, Mapping) else None
    return "" if value is None or isinstance(value, list | dict) else shorten(str(value), _MAX_VALUE_LENGTH)


def to_arrays(schema: PredictionSchema, pairs: Sequence[Pair]) -> tuple[OutcomeRows, Sequence[Pair]]:
    """Return the arrays of some rows, and the rows that they contain: all either numbers or classes."""
    is_number = bool(pairs) and pairs[0].is_number
    used = [pair for pair in pairs if pair.is_number is is_number and _predicted(pair) is not None]
    if is_number:
        return NumberRows(_floats(pair.outcome for pair in used), _floats(map(_predicted, used))), used
    if isinstance(schema, Probabilities | ClassLabels):
        ids = {name: index for index, name in enumerate(schema.classes)}
        actual = _indices(ids.get(pair.outcome, pair.outcome) for pair in used)
        has_probabilities = isinstance(schema, Probabilities)
        probabilities = _probabilities(schema.classes, used) if has_probabilities else None
        return ClassRows(schema.classes, actual, _indices(map(_predicted, used)), probabilities), used
    texts = [(str(pair.outcome), str(_predicted(pair))) for pair in used]
    ids = {name: index for index, name in enumerate(sorted({text for pair in texts for text in pair}))}
    actual, predicted = (_indices(ids[pair[side]] for pair in texts) for side in (0, 1))
    return ClassRows(tuple(ids), actual, predicted), used


def _predicted(pair: Pair) -> Any:
    return pair.predicted.get("prediction") if isinstance(pair.predicted, Mapping) else None


def _probabilities(classes: Sequence[str], pairs: Sequence[Pair]) -> Floats:
    rows = [[pair.predicted["probabilities"][name] for name in classes] for pair in pairs]
    return np.array(rows, np.float64).reshape(-1, len(classes))


def _floats(values: Iterator[Any]) -> Floats:
    return np.fromiter(map(float, values), np.float64)


def _indices(values: Iterator[Any]) -> Indices:
    return np.fromiter(values, np.intp)
