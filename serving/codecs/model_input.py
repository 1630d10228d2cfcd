"""Encode typed rows as the Arrow stream that travels from the front to a model process.

The front encodes rows with the exact types that pyfunc enforces. The model process (`pyfunc_input.py`)
converts them to the DataFrame, array or list that the model receives. Neither side unpickles anything.

A request is one table. A column that no row has is absent from the table, as in the DataFrame that MLflow
creates. A null is a null. If only some rows lack a column, their cells are NaN, as in a DataFrame of such
rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

import pyarrow as pa

from serving.errors import FieldError, ModelFailed, Unprocessable
from serving.types.columns import Column
from serving.types.nested import Nested, to_python
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.RecordBatch
"""Rows as objects, or as columns."""
BatchShape: TypeAlias = tuple[Any, ...]
"""The columns and dtypes of rows. Requests with equal shapes may share a table."""

PARAMS, FORM, TYPE, LABELS = b"params", b"form", b"type", b"labels"
GAPS = b"gaps"
"""Key of schema metadata: the rows that lack a column, by name of the column, as JSON."""
INDEX = b"index"
"""Key of schema metadata: the index of the DataFrame, as JSON."""


class InputKind(str, Enum):
    """The kind of input that pyfunc passes to the model."""

    FRAME = "frame"
    """A DataFrame with the columns' names."""
    UNNAMED_FRAME = "unnamed frame"
    """A DataFrame whose columns are numbered."""
    ARRAY = "array"
    ARRAYS = "arrays"
    """Arrays by name."""
    LIST = "list"
    """Python values, for a model with type hints."""


@dataclass(frozen=True)
class InputLayout:
    """Describes the table that rows are converted to."""

    columns: tuple[Column, ...]
    form: InputKind = InputKind.FRAME

    @cached_property
    def is_flat(self) -> bool:
        """Whether the input is a DataFrame of scalars."""
        return self.form is InputKind.FRAME and all(
            isinstance(column.kind, Scalar) for column in self.columns
        )

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """Names of the columns that a request may omit."""
        return tuple(column.name for column in self.columns if not column.required)

    @cached_property
    def all_or_none_columns(self) -> tuple[str, ...]:
        """Names of the optional columns without nulls: all rows of a table have them, or none."""
        return tuple(
            column.name for column in self.columns if not column.required and not column.kind.nullable
        )

    @cached_property
    def _string_columns(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.type == "string")

    @cached_property
    def _boolean_columns(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.type == "boolean")

    @cached_property
    def _ragged_columns(self) -> tuple[str, ...]:
        return tuple(
            column.name
            for column in self.columns
            if isinstance(column.kind, Tensor) and min(column.kind.shape, default=0) < 0
        )

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all rows (as objects) fit into one table, whatever their values."""
        return not self.optional and not self._ragged_columns

    @cached_property
    def _labels(self) -> Mapping[str, Any] | None:
        """The labels of the DataFrame's columns, if they differ from the names."""
        labels = {column.name: column.label for column in self.columns if column.label is not None}
        return (
            {column.name: labels.get(column.name, column.name) for column in self.columns} if labels else None
        )

    @cached_property
    def _schema(self) -> pa.Schema:
        return self._schema_of(self.columns)

    @staticmethod
    def _schema_of(columns: Sequence[Column]) -> pa.Schema:
        kinds = [(column.name, column.kind) for column in columns]
        return pa.schema([pa.field(name, kind.arrow) for name, kind in kinds if isinstance(kind, Scalar)])

    def batch(self, columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
        """Return a table of columns of valid values, with None for a null."""
        return self.table(
            {
                column.name: column.kind.array(columns[column.name])
                for column in self.columns
                if column.name in columns
            }
        )

    def table(self, arrays: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Return a table of arrays that have the declared types."""
        columns = [column for column in self.columns if column.name in arrays]
        present = [arrays[column.name] for column in columns]
        fields = [_field(column, array) for column, array in zip(columns, present, strict=True)]
        return pa.RecordBatch.from_arrays(present, schema=pa.schema(fields))

    def encode(self, rows: Rows, params: str, trace_headers: Mapping[bytes, str] | None = None) -> bytes:
        """Encode rows of one shape as an Arrow stream of one batch.

        Args:
            rows: the rows.
            params: parameters as JSON (see `canonical_json`), or empty.
            trace_headers: headers of the trace that the call belongs to (`ModelCall.metadata`).

        Raises:
            ModelFailed: a value does not have the type of its column. A valid contract prevents this.
        """
        try:
            batch = rows if isinstance(rows, pa.RecordBatch) else self.to_table(rows)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise ModelFailed("the rows do not fit its signature", str(error)) from error
        metadata: dict[bytes, Any] = {PARAMS: params} if params else {}
        if trace_headers:
            metadata.update(trace_headers)
        if self.form is not InputKind.FRAME:
            metadata[FORM] = self.form
        if self._labels:
            metadata[LABELS] = json.dumps([self._labels[name] for name in batch.schema.names])
        if not metadata:
            return stream(batch)
        return stream(batch.replace_schema_metadata({**(batch.schema.metadata or {}), **metadata}))

    def to_table(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        """Return a table of rows of one shape; a column that no row has is absent."""
        absent = {name for name in self.optional if not any(name in row for row in rows)}
        columns = [column for column in self.columns if column.name not in absent] if absent else self.columns
        if not self.is_flat:
            return self.batch({column.name: [row.get(column.name) for row in rows] for column in columns})
        schema = self._schema_of(columns) if absent else self._schema
        fields = zip(schema.names, schema.types, strict=True)  # a pa.Field creates its name on each access
        arrays = [pa.array([row.get(name) for row in rows], type) for name, type in fields]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    # -- which rows may share a table

    def groups(self, rows: Rows, *, split: bool = True) -> Iterator[tuple[BatchShape, Sequence[int], Rows]]:
        """Yield the groups of rows that each fit into one table: their shape, row indices, and rows.

        There is one group, unless no single table can hold the rows and they may be `split`.

        Raises:
            Unprocessable: no single table can hold the rows, and they may not be split.
        """
        if isinstance(rows, pa.RecordBatch):
            yield self._table_shape(rows), range(len(rows)), rows
            return
        if self.is_uniform:
            yield (), range(len(rows)), rows
            return
        groups: dict[BatchShape, list[int]] = {}
        for index, row in enumerate(rows):
            absent = [name not in row for name in self.all_or_none_columns]
            shapes = [row[name].shape if name in row else None for name in self._ragged_columns]
            groups.setdefault((*absent, *shapes), []).append(index)
        if len(groups) > 1 and not split:
            raise Unprocessable("The rows do not fit into one table.", self._conflicts(groups))
        for shared, indices in groups.items():
            group = rows if len(groups) == 1 else [rows[index] for index in indices]
            gaps = self.gaps(group)
            if gaps:
                batch = self.to_table(group).replace_schema_metadata({GAPS: json.dumps(gaps)})
                yield (object(),), indices, batch
            else:
                yield (*shared, *self._shape(group)), indices, group

    def _shape(self, rows: Sequence[Mapping[str, Any]]) -> BatchShape:
        if lacks_values(rows):
            return (object(),)
        present = [any(name in row for row in rows) for name in self.optional]
        # A string column of nulls only and a boolean column with a null have their own dtypes in pandas. Rows
        # of another request could change these dtypes.
        strings = [all(row.get(name) is None for row in rows) for name in self._string_columns]
        booleans = [any(row.get(name) is None for row in rows) for name in self._boolean_columns]
        return (*present, *strings, *booleans)

    def gaps(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
        """Return the rows that lack an optional column of objects that other rows have, by name."""
        gaps = {}
        for column in self.columns if len(rows) > 1 else ():
            name = column.name
            if column.required or not column.kind.is_object:
                continue
            absent = [index for index, row in enumerate(rows) if name not in row]
            # pyfunc accepts NaN next to booleans, but not in a column without booleans.
            is_empty = name in self._boolean_columns and all(row.get(name) is None for row in rows)
            if 0 < len(absent) < len(rows) and not is_empty:
                gaps[name] = absent
        return gaps

    def _conflicts(self, groups: Mapping[BatchShape, Any]) -> tuple[FieldError, ...]:
        def differs(position: int) -> bool:
            return len({key[position] for key in groups}) > 1

        columns = self.all_or_none_columns
        partial = [name for index, name in enumerate(columns) if differs(index)]
        ragged = [name for index, name in enumerate(self._ragged_columns) if differs(len(columns) + index)]
        absent = "Only some rows have it, and MLflow accepts no null in it: send it in all rows or in none"
        return (
            *(FieldError((name,), absent) for name in partial),
            *(FieldError((name,), "The arrays of all rows should have one shape") for name in ragged),
        )

    def _table_shape(self, rows: pa.RecordBatch) -> BatchShape:
        if is_indivisible(rows):
            return (object(),)
        names = rows.schema.names
        present = names if self.optional else ()
        shapes = [str(rows.column(name).type) for name in self._ragged_columns if name in names]
        nullable = (*self._string_columns, *self._boolean_columns)
        nulls = {name: rows.column(name).null_count for name in nullable if name in names}
        strings = [nulls.get(name) == len(rows) for name in self._string_columns]
        booleans = [bool(nulls.get(name)) for name in self._boolean_columns]
        return (*present, *shapes, *strings, *booleans)


def is_indivisible(rows: Rows) -> bool:
    """Return whether a table must not be cut or extended: it has gaps or an index, or no column."""
    metadata = (rows.schema.metadata if isinstance(rows, pa.RecordBatch) else None) or {}
    return GAPS in metadata or INDEX in metadata or lacks_values(rows)


def lacks_values(rows: Rows) -> bool:
    """Return whether the rows omit all columns, so that the model receives a DataFrame without rows.

    pyfunc creates its input from the columns. Without a column, the number of rows is lost, in MLflow too.
    """
    return not (rows.schema.names if isinstance(rows, pa.RecordBatch) else any(rows))


def _field(column: Column, array: pa.Array) -> pa.Field:
    # The model process restores Python values, such as datetimes, from JSON by this type.
    converts = isinstance(column.kind, Nested) and column.kind.converts
    return pa.field(column.name, array.type, metadata={TYPE: column.type} if converts else None)


def canonical_json(params: Mapping[str, Any]) -> str:
    """Return parameters as JSON for `InputLayout.encode`; equal parameters yield equal texts."""
    return json.dumps(params, sort_keys=True, default=str) if params else ""


def concat(parts: Sequence[Rows]) -> Rows:
    """Concatenate rows; all parts are objects, or all are tables."""
    if len(parts) == 1:
        return parts[0]
    if parts and isinstance(parts[0], pa.RecordBatch):
        return pa.concat_batches(parts)
    return [row for part in parts for row in part]


def merged(parts: Sequence[Rows]) -> Rows:
    """Return the rows of one request that was parsed in chunks."""
    tables = [part for part in parts if isinstance(part, pa.RecordBatch)]
    if len(parts) == 1 or (len(tables) == len(parts) and len({table.schema for table in tables}) == 1):
        return concat(parts)
    return [row for part in parts for row in objects(part)]


def objects(rows: Rows) -> Sequence[Mapping[str, Any]]:
    """Return rows as objects, with nested values in JSON types."""
    if not isinstance(rows, pa.RecordBatch):
        return rows
    columns = {field.name: to_python(column) for field, column in zip(rows.schema, rows.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stream(batch: pa.RecordBatch) -> bytes:
    """Return an Arrow stream of one batch without dictionaries."""
    # These are the bytes that `pa.ipc.new_stream` would write, in a third of the time.
    encoded: bytes = batch.schema.serialize().to_pybytes() + batch.serialize().to_pybytes()
    return encoded
