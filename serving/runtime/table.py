"""Typed rows ⇄ Arrow ⇄ what pyfunc takes.

What crosses from the front to a model process is an Arrow stream. The front encodes rows with the exact types
that pyfunc enforces; the model process makes of them the DataFrame, array or list that the model is asked
with. Neither unpickles anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from serving.errors import ModelFailed
from serving.runtime import trace
from serving.runtime.columns import Column
from serving.runtime.nesting import JSON, Nested, revived, unpacked
from serving.runtime.scalars import Scalar
from serving.runtime.tensors import Tensor, arrays

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.RecordBatch
"""Rows as objects, or in columns."""
Likeness: TypeAlias = tuple[Any, ...]
"""What rows that can be one table share: which columns they leave out, the shapes of their tensors."""

_PARAMS, _FORM, _TYPE = b"params", b"form", b"type"
_NUMPY = {pa.float64(): np.float64, pa.float32(): np.float32, pa.int64(): np.int64, pa.int32(): np.int32}


class Form(str, Enum):
    """What pyfunc takes."""

    FRAME = "frame"
    """A DataFrame with the columns' names."""
    UNNAMED_FRAME = "unnamed frame"
    """A DataFrame whose columns are numbered."""
    ARRAY = "array"
    ARRAYS = "arrays"
    """Arrays by name."""
    LIST = "list"
    """Python values, as type hints have them."""


@dataclass(frozen=True)
class Layout:
    """The table that rows become."""

    columns: tuple[Column, ...]
    form: Form = Form.FRAME

    @cached_property
    def is_flat(self) -> bool:
        """Whether it is a DataFrame of scalars."""
        return self.form is Form.FRAME and all(isinstance(column.kind, Scalar) for column in self.columns)

    @cached_property
    def left_out_whole(self) -> tuple[str, ...]:
        """The optional columns that a table has for all its rows or for none: they can't hold a null."""
        return tuple(
            column.name for column in self.columns if not column.required and not column.kind.nullable
        )

    @cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field(column.name, column.kind.arrow)
                for column in self.columns
                if isinstance(column.kind, Scalar)
            ]
        )

    @cached_property
    def _of_any_shape(self) -> tuple[str, ...]:
        return tuple(
            column.name
            for column in self.columns
            if isinstance(column.kind, Tensor) and min(column.kind.shape, default=0) < 0
        )

    @cached_property
    def is_uniform(self) -> bool:
        """Whether any rows can be one table."""
        return not self.left_out_whole and not self._of_any_shape

    def batch(self, columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
        """Rows in columns, of values that fit, or None where a row leaves one out."""
        return self.table({column.name: column.kind.array(columns[column.name]) for column in self.columns})

    def table(self, arrays: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Rows in columns, of arrays that fit."""
        found = [arrays[column.name] for column in self.columns]
        fields = [_field(column, array) for column, array in zip(self.columns, found, strict=True)]
        return pa.RecordBatch.from_arrays(found, schema=pa.schema(fields))

    def encode(self, rows: Rows, params: str, carried: Mapping[bytes, str] | None = None) -> bytes:
        """Rows that are alike as an Arrow stream of one batch. `params` is JSON, or empty.

        Of the trace that the batch belongs to, if to any, is `carried` along what `Call.metadata` has.

        Raises:
            ModelFailed: a value is not of its column's type, which a contract does not let happen.
        """
        try:
            batch = rows if isinstance(rows, pa.RecordBatch) else self._batch(rows)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise ModelFailed("the rows do not fit its signature", str(error)) from error
        metadata = {_PARAMS: params} if params else {}
        if carried:
            metadata.update(carried)
        if self.form is not Form.FRAME:
            metadata[_FORM] = self.form
        return stream(batch.replace_schema_metadata(metadata) if metadata else batch)

    def _batch(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        if not self.is_flat:
            return self.batch(
                {column.name: [row.get(column.name) for row in rows] for column in self.columns}
            )
        fields = zip(
            self._schema.names, self._schema.types, strict=True
        )  # a field makes its name anew each time
        arrays = [pa.array([row.get(name) for row in rows], kind) for name, kind in fields]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def groups(self, rows: Rows) -> Iterator[tuple[Likeness, Sequence[int], Rows]]:
        """Rows in groups that can each be one table: what they share, their indices, and the rows."""
        if isinstance(rows, pa.RecordBatch):
            yield from self._groups_of_columns(rows)
            return
        if self.is_uniform:
            yield (), range(len(rows)), rows
            return
        found: dict[Likeness, list[int]] = {}
        for index, row in enumerate(rows):
            absent = [row.get(name) is None for name in self.left_out_whole]
            shapes = [row[name].shape for name in self._of_any_shape]
            found.setdefault((*absent, *shapes), []).append(index)
        for likeness, indices in found.items():
            yield likeness, indices, [rows[index] for index in indices]

    def _groups_of_columns(self, rows: pa.RecordBatch) -> Iterator[tuple[Likeness, Sequence[int], Rows]]:
        shapes = [str(rows.column(name).type) for name in self._of_any_shape]
        absent = [rows.column(name).is_null() for name in self.left_out_whole]
        if not any(0 < column.true_count < len(rows) for column in absent):
            yield (*(bool(column.true_count) for column in absent), *shapes), range(len(rows)), rows
            return
        found: dict[Likeness, list[int]] = {}
        for index, likeness in enumerate(zip(*(column.to_pylist() for column in absent), strict=True)):
            found.setdefault(likeness, []).append(index)
        for likeness, indices in found.items():
            yield (*likeness, *shapes), indices, rows.take(pa.array(indices))


def _field(column: Column, array: pa.Array) -> pa.Field:
    # What JSON can't say is made anew of what it can, by the type.
    converts = isinstance(column.kind, Nested) and column.kind.converts
    return pa.field(column.name, array.type, metadata={_TYPE: column.type} if converts else None)


def in_text(params: Mapping[str, Any]) -> str:
    """Parameters as `Layout.encode` takes them; equal ones are equal texts."""
    return json.dumps(params, sort_keys=True, default=str) if params else ""


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one behind the other; all parts are of one form."""
    if len(parts) == 1:
        return parts[0]
    if parts and isinstance(parts[0], pa.RecordBatch):
        return pa.concat_batches(parts)
    return [row for part in parts for row in part]


def rejoined(parts: Sequence[pa.RecordBatch], places: Sequence[Sequence[int]]) -> pa.RecordBatch:
    """Rows that were in parts, each at its place among all.

    Raises:
        ModelFailed: the parts differ in form.
    """
    try:
        found = pa.concat_batches(parts)
    except pa.ArrowInvalid as error:
        raise ModelFailed("it answered the rows of one request in several forms", str(error)) from error
    order = np.concatenate(places)
    return found if (np.diff(order) > 0).all() else found.take(pa.array(np.argsort(order)))


def objects(rows: Rows) -> Sequence[Mapping[str, Any]]:
    """Rows as objects, with nested values as JSON has them."""
    if not isinstance(rows, pa.RecordBatch):
        return rows
    columns = {field.name: unpacked(column) for field, column in zip(rows.schema, rows.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Asked(NamedTuple):
    """What a model is asked."""

    data: Any
    """What pyfunc takes, with the dtypes that it enforces."""
    rows: int
    params: dict[str, Any] | None
    carried: dict[str, str]
    """Of the trace that this belongs to, if to any."""


def decode(encoded: bytes) -> Asked:
    """What was encoded, for the model."""
    batch = pa.ipc.open_stream(encoded).read_next_batch()
    metadata = batch.schema.metadata or {}
    params = metadata.get(_PARAMS)
    taken = _taken(batch, Form(metadata.get(_FORM, b"frame").decode()))
    read = json.loads(params) if params else None
    return Asked(taken, batch.num_rows, read, trace.carried(metadata) if metadata else {})


def _taken(batch: pa.RecordBatch, form: Form) -> Any:
    match form:
        case Form.FRAME:
            return _frame(batch)
        case Form.UNNAMED_FRAME:
            return _frame(batch).set_axis(range(batch.num_columns), axis=1)
        case Form.LIST:
            return _revived(batch.column(0), batch.schema.field(0), lambda date: date)
        case Form.ARRAY:
            return arrays(batch.column(0))
    return {name: arrays(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _frame(batch: pa.RecordBatch) -> pd.DataFrame:
    """The batch as a DataFrame; numbers of one type as one block, several times as fast as Arrow does it."""
    kinds = set(batch.schema.types)
    if len(kinds) == 1 and (kind := kinds.pop()) in _NUMPY and not any(c.null_count for c in batch.columns):
        block = np.empty((batch.num_columns, batch.num_rows), _NUMPY[kind])
        for row, column in zip(block, batch.columns, strict=True):
            row[:] = column.to_numpy()
        return pd.DataFrame(block.T, columns=_index(tuple(batch.schema.names)), copy=False)
    # pyfunc refuses a null in an integer column, but takes an optional column that is left out.
    absent = [
        field.name
        for field, column in zip(batch.schema, batch.columns, strict=True)
        if pa.types.is_integer(field.type) and column.null_count
    ]
    # `drop_columns` is not in pyarrow before 15.
    flat = batch.select([each.name for each in batch.schema if each.type != JSON and each.name not in absent])
    frame: pd.DataFrame = flat.to_pandas(use_threads=False)
    for index, field in enumerate(field for field in batch.schema if field.name not in absent):
        if field.type == JSON:
            # pyfunc takes no other datetime for one within other values.
            found = _revived(batch.column(field.name), field, lambda date: np.datetime64(date, "ns"))
            values = pd.Series(found, dtype=object)
            frame.insert(index, field.name, values)
    return frame


def _revived(column: pa.Array, field: pa.Field, date: Callable[[datetime], Any]) -> list[Any]:
    values = unpacked(column)
    type = (field.metadata or {}).get(_TYPE)
    return [revived(value, json.loads(type), date) for value in values] if type else values


@lru_cache(maxsize=16)
def _index(names: tuple[str, ...]) -> pd.Index[str]:
    return pd.Index(names)


def stream(batch: pa.RecordBatch) -> bytes:
    """An Arrow stream of one batch."""
    # What `pa.ipc.new_stream` would write where there are no dictionaries, in a third of the time.
    encoded: bytes = batch.schema.serialize().to_pybytes() + batch.serialize().to_pybytes()
    return encoded
