"""Decodes the Arrow stream from the front to the input of pyfunc; used only in the model process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from serving.codecs.model_input import FORM, GAPS, INDEX, LABELS, PARAMS, TYPE, InputKind
from serving.telemetry import trace_context
from serving.types.nested import JSON, restore_types, to_python
from serving.types.tensors import from_list_array

_NUMPY = {pa.float64(): np.float64, pa.float32(): np.float32, pa.int64(): np.int64, pa.int32(): np.int32}


class ModelInput(NamedTuple):
    """The input of one call."""

    data: Any
    """The input of pyfunc, with the dtypes that pyfunc enforces."""
    rows: int
    params: dict[str, Any] | None
    trace_headers: dict[str, str]
    """The W3C trace context of the call; empty if it is not traced."""


def decode(encoded: bytes) -> ModelInput:
    """Decode the output of `InputLayout.encode`."""
    batch = pa.ipc.open_stream(encoded).read_next_batch()
    metadata = batch.schema.metadata or {}
    params = metadata.get(PARAMS)
    data = _data(batch, metadata)
    headers = trace_context.extract(metadata) if metadata else {}
    return ModelInput(data, batch.num_rows, json.loads(params) if params else None, headers)


def _data(batch: pa.RecordBatch, metadata: Mapping[bytes, bytes]) -> Any:
    match InputKind(metadata.get(FORM, b"frame").decode()):
        case InputKind.FRAME:
            return _labelled(_frame(batch), metadata)
        case InputKind.UNNAMED_FRAME:
            return _labelled(_frame(batch).set_axis(range(batch.num_columns), axis=1), metadata)
        case InputKind.LIST:
            return to_python(batch.column(0))  # pyfunc converts the values by the type hint
        case InputKind.ARRAY:
            return from_list_array(batch.column(0))
    return {
        name: from_list_array(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


def _frame(batch: pa.RecordBatch) -> pd.DataFrame:
    """Return a DataFrame. Numbers of one type become one block, which is several times as fast as Arrow."""
    types = set(batch.schema.types)
    if len(types) == 1 and (type := types.pop()) in _NUMPY and not any(c.null_count for c in batch.columns):
        block = np.empty((batch.num_columns, batch.num_rows), _NUMPY[type])
        for row, column in zip(block, batch.columns, strict=True):
            row[:] = column.to_numpy()
        return pd.DataFrame(block.T, columns=_index(tuple(batch.schema.names)), copy=False)
    # pyarrow before 15 has no `drop_columns`.
    flat = batch.select([field.name for field in batch.schema if field.type != JSON])
    frame: pd.DataFrame = flat.to_pandas(use_threads=False)
    for index, field in enumerate(batch.schema):
        column = batch.column(index)
        if field.type == JSON:
            # The only type that pyfunc accepts for a datetime in a nested value.
            values = _nested(column, field, lambda date: np.datetime64(date, "ns"))
            frame.insert(index, field.name, pd.Series(values, dtype=object))
        elif pa.types.is_string(field.type) and column.null_count == len(column):
            # With to_pandas, pandas 3 converts None to NaN; a Series of dtype object keeps it.
            frame[field.name] = pd.Series([None] * len(column), dtype=object)
    return frame


def _labelled(frame: pd.DataFrame, metadata: Mapping[bytes, bytes]) -> pd.DataFrame:
    """Apply the optional metadata of a request: NaN where a row omits a column, column labels, an index."""
    if not metadata:
        return frame
    for name, rows in json.loads(metadata.get(GAPS, b"{}")).items():
        if frame[name].dtype == object:
            values = frame[name].copy()
            # pandas reads a column without any value as numbers, in which a null is NaN as well.
            values.iloc[slice(None) if values.isna().all() else rows] = np.nan
            frame[name] = values
    if labels := metadata.get(LABELS):
        frame.columns = pd.Index(json.loads(labels))
    if index := metadata.get(INDEX):
        frame.index = pd.Index(json.loads(index))
    return frame


def _nested(column: pa.Array, field: pa.Field, date: Callable[[datetime], Any]) -> list[Any]:
    values = to_python(column)
    type = (field.metadata or {}).get(TYPE)
    return [restore_types(value, json.loads(type), date) for value in values] if type else values


@lru_cache(maxsize=16)
def _index(names: tuple[str, ...]) -> pd.Index[str]:
    return pd.Index(names)
