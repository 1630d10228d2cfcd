"""Typed rows ⇄ Arrow ⇄ pandas: what crosses between the front and a model process is an Arrow stream.

The front encodes rows with the exact types that pyfunc enforces and reads back the model's answer; the model
process does the reverse. Neither unpickles anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from serving.errors import ModelFailed
from serving.runtime.columns import Column

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.RecordBatch
"""Rows as objects, or in columns."""

_PARAMS = b"params"
_NUMPY = {pa.float64(): np.float64, pa.float32(): np.float32, pa.int64(): np.int64, pa.int32(): np.int32}


def schema(columns: Iterable[Column]) -> pa.Schema:
    """The Arrow schema of a table with these columns."""
    return pa.schema([pa.field(column.name, column.scalar.arrow) for column in columns])


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one behind the other; all parts are of one form."""
    if len(parts) == 1:
        return parts[0]
    if parts and isinstance(parts[0], pa.RecordBatch):
        return pa.concat_batches(parts)
    return [row for part in parts for row in part]


def encode(schema: pa.Schema, rows: Rows, params: str) -> bytes:
    """Rows as an Arrow stream of one batch; what a row leaves out is null. `params` is JSON, or empty.

    Raises:
        ModelFailed: a value is not of its column's type, which a contract does not let happen.
    """
    try:
        batch = rows if isinstance(rows, pa.RecordBatch) else _columns(schema, rows)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise ModelFailed("the rows do not fit its signature", str(error)) from error
    return _stream(batch.replace_schema_metadata({_PARAMS: params}) if params else batch)


def _columns(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    fields = zip(schema.names, schema.types, strict=True)  # a field makes its name anew each time
    arrays = [pa.array([row.get(name) for row in rows], kind) for name, kind in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def decode(stream: bytes) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """The DataFrame with the dtypes that pyfunc enforces, and the parameters, of what `encode` made."""
    batch = pa.ipc.open_stream(stream).read_next_batch()
    # pyfunc refuses a null in an integer column, but takes an optional column that is left out.
    absent = [
        field.name
        for field, column in zip(batch.schema, batch.columns, strict=True)
        if pa.types.is_integer(field.type) and column.null_count
    ]
    params = (batch.schema.metadata or {}).get(_PARAMS)
    return _frame(batch.drop_columns(absent)), json.loads(params) if params else None


def _frame(batch: pa.RecordBatch) -> pd.DataFrame:
    """The batch as a DataFrame; numbers of one type as one block, several times as fast as Arrow does it."""
    kinds = set(batch.schema.types)
    if len(kinds) == 1 and (kind := kinds.pop()) in _NUMPY and not any(c.null_count for c in batch.columns):
        block = np.empty((batch.num_columns, batch.num_rows), _NUMPY[kind])
        for row, column in zip(block, batch.columns, strict=True):
            row[:] = column.to_numpy()
        return pd.DataFrame(block.T, columns=_index(tuple(batch.schema.names)), copy=False)
    frame: pd.DataFrame = batch.to_pandas(use_threads=False)
    return frame


@lru_cache(maxsize=16)
def _index(names: tuple[str, ...]) -> pd.Index[str]:
    return pd.Index(names)


def encode_answer(answer: Any) -> bytes:
    """A model's answer as an Arrow stream of one batch: a DataFrame's columns, or one column of values.

    Raises:
        TypeError: it is no DataFrame, Series, array or list of plain values.
    """
    try:
        return _stream(_batch(answer))
    except (pa.ArrowException, ValueError) as error:
        raise TypeError(f"its answer of type {type(answer).__name__} is no table: {error}") from error


def decode_answer(stream: bytes) -> pa.RecordBatch:
    """What `encode_answer` made.

    Raises:
        ModelFailed: the bytes are no Arrow stream of one batch.
    """
    try:
        batch = pa.ipc.open_stream(stream).read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise ModelFailed("the model process sent no table", str(error)) from error
    return batch


def by_absence(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> dict[tuple[bool, ...], list[int]]:
    """The indices of `rows` by which of `columns` they leave out: each group can be one table."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for index, row in enumerate(rows):
        absence = tuple(row.get(name) is None for name in columns)
        groups.setdefault(absence, []).append(index)
    return groups


def _batch(answer: Any) -> pa.RecordBatch:
    if isinstance(answer, pd.DataFrame):
        arrays = [_array(answer.iloc[:, index]) for index in range(answer.shape[1])]
        return pa.RecordBatch.from_arrays(arrays, names=[str(name) for name in answer.columns])
    if isinstance(answer, np.ndarray) and answer.ndim > 1:
        return pa.RecordBatch.from_arrays([_nested(answer)], names=["0"])
    if isinstance(answer, (np.ndarray, pd.Series, list, tuple)):
        return pa.RecordBatch.from_arrays([_array(answer)], names=["0"])
    raise TypeError(f"its answer of type {type(answer).__name__} is no table")


def _array(values: Any) -> pa.Array:
    # What is NaN in a column of numbers would become null, as pandas has it, which is another answer.
    is_float = (
        isinstance(values, pd.Series) and isinstance(values.dtype, np.dtype) and values.dtype.kind == "f"
    )
    array = pa.array(values.to_numpy() if is_float else values)
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _nested(array: np.ndarray[Any, Any]) -> pa.Array:
    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def _stream(batch: pa.RecordBatch) -> bytes:
    # What `pa.ipc.new_stream` would write where there are no dictionaries, in a third of the time.
    encoded: bytes = batch.schema.serialize().to_pybytes() + batch.serialize().to_pybytes()
    return encoded
