"""Typed rows as the Arrow stream that crosses from the front to a model process.

The front encodes rows with the exact types that pyfunc enforces; `model_input.py` makes of them the
DataFrame, array or list that the model is called with. Neither unpickles anything.

A request is one table. A column that all of its rows leave out is absent from the table, as it is from the
DataFrame that MLflow makes; a null is a null. Where only some rows leave a column out, those cells are NaN,
as in a DataFrame made of such rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from serving.errors import FieldError, ModelFailed, Unprocessable
from serving.types.columns import Column
from serving.types.nested import Nested, to_python
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.RecordBatch
"""Rows as objects, or in columns."""
BatchShape: TypeAlias = tuple[Any, ...]
"""What the rows of requests have in common that may share a table: their columns, and the dtypes of these."""

PARAMS, FORM, TYPE, LABELS = b"params", b"form", b"type", b"labels"
GAPS = b"gaps"
"""Key of schema metadata: the rows of each column that left it out, as JSON."""
INDEX = b"index"
"""Key of schema metadata: the index of the DataFrame, as JSON."""


class InputKind(str, Enum):
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
class InputLayout:
    """The table that rows become."""

    columns: tuple[Column, ...]
    form: InputKind = InputKind.FRAME

    @cached_property
    def is_flat(self) -> bool:
        """Whether it is a DataFrame of scalars."""
        return self.form is InputKind.FRAME and all(
            isinstance(column.kind, Scalar) for column in self.columns
        )

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """The columns that a request may leave out."""
        return tuple(column.name for column in self.columns if not column.required)

    @cached_property
    def _without_nulls(self) -> tuple[str, ...]:
        """The optional columns that can't hold a null, so that all rows of a table have them, or none."""
        return tuple(
            column.name for column in self.columns if not column.required and not column.kind.nullable
        )

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.type == "string")

    @cached_property
    def _booleans(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.type == "boolean")

    @cached_property
    def _of_any_shape(self) -> tuple[str, ...]:
        return tuple(
            column.name
            for column in self.columns
            if isinstance(column.kind, Tensor) and min(column.kind.shape, default=0) < 0
        )

    @cached_property
    def is_uniform(self) -> bool:
        """Whether any rows as objects can be one table."""
        return not self.optional and not self._of_any_shape

    @cached_property
    def _labels(self) -> Mapping[str, Any] | None:
        """The labels of the DataFrame's columns, where they are not their names."""
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
        """Make a table of columns of values that fit, None for a null; what is not there is absent."""
        return self.table(
            {
                column.name: column.kind.array(columns[column.name])
                for column in self.columns
                if column.name in columns
            }
        )

    def table(self, arrays: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Make a table of arrays that fit; what is not there is absent."""
        columns = [column for column in self.columns if column.name in arrays]
        present = [arrays[column.name] for column in columns]
        fields = [_field(column, array) for column, array in zip(columns, present, strict=True)]
        return pa.RecordBatch.from_arrays(present, schema=pa.schema(fields))

    def encode(self, rows: Rows, params: str, carried: Mapping[bytes, str] | None = None) -> bytes:
        """Encode rows of one likeness as an Arrow stream of one batch. `params` is JSON, or empty.

        `carried` are the headers of the trace that the batch belongs to, as `Call.metadata` has them.

        Raises:
            ModelFailed: a value is not of its column's type, which a contract does not let happen.
        """
        try:
            batch = rows if isinstance(rows, pa.RecordBatch) else self.to_table(rows)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise ModelFailed("the rows do not fit its signature", str(error)) from error
        metadata: dict[bytes, Any] = {PARAMS: params} if params else {}
        if carried:
            metadata.update(carried)
        if self.form is not InputKind.FRAME:
            metadata[FORM] = self.form
        if self._labels:
            metadata[LABELS] = json.dumps([self._labels[name] for name in batch.schema.names])
        if not metadata:
            return stream(batch)
        return stream(batch.replace_schema_metadata({**(batch.schema.metadata or {}), **metadata}))

    def to_table(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        """Make a table of rows that are alike; a column that all of them leave out is absent."""
        absent = {name for name in self.optional if not any(name in row for row in rows)}
        columns = [column for column in self.columns if column.name not in absent] if absent else self.columns
        if not self.is_flat:
            return self.batch({column.name: [row.get(column.name) for row in rows] for column in columns})
        schema = self._schema_of(columns) if absent else self._schema
        fields = zip(schema.names, schema.types, strict=True)  # a field makes its name anew each time
        arrays = [pa.array([row.get(name) for row in rows], type) for name, type in fields]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    # -- which rows may share a table

    def groups(self, rows: Rows, *, split: bool = True) -> Iterator[tuple[BatchShape, Sequence[int], Rows]]:
        """Yield the tables that the rows of one request become: likeness, indices of the rows, and the rows.

        It is one table, unless the rows differ in what no table can hold at once, and may be `split`.

        Raises:
            Unprocessable: they differ so, and may not be split.
        """
        if isinstance(rows, pa.RecordBatch):
            yield self._likeness_of_table(rows), range(len(rows)), rows
            return
        if self.is_uniform:
            yield (), range(len(rows)), rows
            return
        groups: dict[BatchShape, list[int]] = {}
        for index, row in enumerate(rows):
            absent = [name not in row for name in self._without_nulls]
            shapes = [row[name].shape if name in row else None for name in self._of_any_shape]
            groups.setdefault((*absent, *shapes), []).append(index)
        if len(groups) > 1 and not split:
            raise Unprocessable("The rows do not fit into one table.", self._why_apart(groups))
        for shared, indices in groups.items():
            group = rows if len(groups) == 1 else [rows[index] for index in indices]
            gaps = self.gaps(group)
            if gaps:
                batch = self.to_table(group).replace_schema_metadata({GAPS: json.dumps(gaps)})
                yield (object(),), indices, batch
            else:
                yield (*shared, *self._likeness(group)), indices, group

    def _likeness(self, rows: Sequence[Mapping[str, Any]]) -> BatchShape:
        present = [any(name in row for row in rows) for name in self.optional]
        # All nulls, or some beside booleans, make a column of objects; with others its dtype would be
        # another.
        texts = [all(row.get(name) is None for row in rows) for name in self._texts]
        booleans = [any(row.get(name) is None for row in rows) for name in self._booleans]
        return (*present, *texts, *booleans)

    def gaps(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
        """Return the rows that leave out an optional column of objects which others have."""
        gaps = {}
        for column in self.columns if len(rows) > 1 else ():
            name = column.name
            if column.required or not column.kind.is_object:
                continue
            absent = [index for index, row in enumerate(rows) if name not in row]
            # pyfunc takes NaN among booleans, but not in a column that has none.
            is_empty = name in self._booleans and all(row.get(name) is None for row in rows)
            if 0 < len(absent) < len(rows) and not is_empty:
                gaps[name] = absent
        return gaps

    def _why_apart(self, groups: Mapping[BatchShape, Any]) -> tuple[FieldError, ...]:
        absent = len(self._without_nulls)
        some = [
            name for index, name in enumerate(self._without_nulls) if len({key[index] for key in groups}) > 1
        ]
        shapes = [
            name
            for index, name in enumerate(self._of_any_shape)
            if len({key[absent + index] for key in groups}) > 1
        ]
        left_out = "Only some rows have it, and MLflow takes no null for it: send it in all rows or in none"
        return (
            *(FieldError((name,), left_out) for name in some),
            *(FieldError((name,), "The arrays of all rows should have one shape") for name in shapes),
        )

    def _likeness_of_table(self, rows: pa.RecordBatch) -> BatchShape:
        if is_own(rows):
            return (object(),)
        names = rows.schema.names
        present = names if self.optional else ()
        shapes = [str(rows.column(name).type) for name in self._of_any_shape if name in names]
        nulls = {
            name: rows.column(name).null_count for name in (*self._texts, *self._booleans) if name in names
        }
        texts = [nulls.get(name) == len(rows) for name in self._texts]
        booleans = [bool(nulls.get(name)) for name in self._booleans]
        return (*present, *shapes, *texts, *booleans)


def is_own(rows: Rows) -> bool:
    """Return whether a table has gaps or an index, which hold for all of it: it can't be cut or extended."""
    metadata = (rows.schema.metadata if isinstance(rows, pa.RecordBatch) else None) or {}
    return GAPS in metadata or INDEX in metadata


def _field(column: Column, array: pa.Array) -> pa.Field:
    # What JSON can't say is made anew of what it can, by the type.
    converts = isinstance(column.kind, Nested) and column.kind.converts
    return pa.field(column.name, array.type, metadata={TYPE: column.type} if converts else None)


def canonical_json(params: Mapping[str, Any]) -> str:
    """Parameters as `Layout.encode` takes them; equal ones are equal texts."""
    return json.dumps(params, sort_keys=True, default=str) if params else ""


def concat(parts: Sequence[Rows]) -> Rows:
    """Rows one behind the other; all parts are of one form."""
    if len(parts) == 1:
        return parts[0]
    if parts and isinstance(parts[0], pa.RecordBatch):
        return pa.concat_batches(parts)
    return [row for part in parts for row in part]


def concat_ordered(parts: Sequence[pa.RecordBatch], places: Sequence[Sequence[int]]) -> pa.RecordBatch | None:
    """Return rows that were in parts, each at its place among all; None where the parts differ in form."""
    try:
        if len({part.schema for part in parts}) == 1:
            table = pa.concat_batches(parts)
        elif len({(*part.schema.names, str(part.schema.metadata)) for part in parts}) == 1:
            # Of whole numbers in one part and others in the next, one call would have made the latter.
            tables = [pa.Table.from_batches([part]) for part in parts]
            (table,) = pa.concat_tables(tables, promote_options="permissive").combine_chunks().to_batches()
        else:
            return None
    except (pa.ArrowException, ValueError):
        return None
    order = np.concatenate(places)
    return table if (np.diff(order) > 0).all() else table.take(pa.array(np.argsort(order)))


def merged(parts: Sequence[Rows]) -> Rows:
    """Return the rows of one request that was read in pieces."""
    tables = [part for part in parts if isinstance(part, pa.RecordBatch)]
    if len(parts) == 1 or (len(tables) == len(parts) and len({table.schema for table in tables}) == 1):
        return concat(parts)
    return [row for part in parts for row in objects(part)]


def objects(rows: Rows) -> Sequence[Mapping[str, Any]]:
    """Rows as objects, with nested values as JSON has them."""
    if not isinstance(rows, pa.RecordBatch):
        return rows
    columns = {field.name: to_python(column) for field, column in zip(rows.schema, rows.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stream(batch: pa.RecordBatch) -> bytes:
    """An Arrow stream of one batch."""
    # What `pa.ipc.new_stream` would write where there are no dictionaries, in a third of the time.
    encoded: bytes = batch.schema.serialize().to_pybytes() + batch.serialize().to_pybytes()
    return encoded
