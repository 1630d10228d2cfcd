"""Select the columns of a model's output by the names in its signature."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson
import pyarrow as pa

from serving.errors import ModelFailed
from serving.types.nested import JSON, to_python


def columns(table: pa.RecordBatch, names: Sequence[str | None]) -> list[pa.Array]:
    """Return the columns of an output that a signature names.

    Several names may also refer to the columns of a matrix, or to the fields of one object per row.

    Raises:
        ModelFailed: the output has other columns.
    """
    if len(names) == 1 and table.num_columns == 1:
        return [table.column(0)]
    if {*names} <= {*table.schema.names}:
        return [table.column(name) for name in names]
    if table.num_columns == 1:
        array = table.column(0)
        if pa.types.is_fixed_size_list(array.type) and array.type.list_size == len(names):
            flat = array.flatten()
            return [flat.take(pa.array(range(place, len(flat), len(names)))) for place in range(len(names))]
        if array.type == JSON and (fields := _fields(array, names)):
            return fields
    expected = "one column" if names == [None] else ", ".join(map(str, names))
    actual = ", ".join(table.schema.names[:20]) if table.num_columns > 1 else "one column"
    raise ModelFailed(f"it returned {actual}, but its signature declares {expected}")


def _fields(array: pa.Array, names: Sequence[str | None]) -> list[pa.Array] | None:
    """Return the fields of the objects as columns; None if a value is no object or has other fields."""
    rows = to_python(array)
    if not all(isinstance(row, dict) and row.keys() <= {*names} for row in rows):
        return None
    return [column_of([row.get(name) for row in rows]) for name in names]


def column_of(values: list[Any]) -> pa.Array:
    """Return a column of JSON values: of their common type if there is one, otherwise of JSON texts."""
    if not any(isinstance(value, (dict, list)) for value in values):
        with suppress(pa.ArrowException):  # values of several types
            return pa.array(values)
    texts = [None if value is None else orjson.dumps(value).decode() for value in values]
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))
