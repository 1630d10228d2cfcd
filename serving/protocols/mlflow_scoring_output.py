"""Rendering of a model's output in the JSON of MLflow's scoring protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import orjson
import pyarrow as pa

from serving.codecs import model_output
from serving.codecs.model_output import OutputForm
from serving.codecs.output_json import JsonFragments, OutputColumn
from serving.codecs.predictions import interleave
from serving.errors import ModelFailed
from serving.types.tensors import from_list_array

_MAX_ROWS_RENDERED = 4096


def predictions_json(declared: Sequence[OutputColumn], table: pa.RecordBatch) -> Iterator[bytes]:
    """Yield a model's output as MLflow's server writes it under `predictions`, in pieces.

    Args:
        declared: the output columns of the signature.
        table: the output of the model.

    Raises:
        ModelFailed: the output has a number that JSON cannot represent.
    """
    names = table.schema.names
    match model_output.form(table):
        case OutputForm.RECORDS:
            fields = [
                _value(declared, name, column) for name, column in zip(names, table.columns, strict=True)
            ]
            yield from _listed(table, partial(_records, fields))
        case OutputForm.VALUES:
            # An array without names is the only declared column.
            only = declared[0].name if len(declared) == 1 else None
            yield from _listed(table, partial(_only, _value(declared, only, table.column(0))))
        case OutputForm.COLUMNS:
            for index, (name, column) in enumerate(zip(names, table.columns, strict=True)):
                yield (b"," if index else b"{") + orjson.dumps(name) + b":"
                yield from _listed(table.select([name]), partial(_only, _value(declared, name, column)))
            yield b"}"
        case OutputForm.WHOLE:
            yield _only(_value(declared, None, table.column(0)), table)


def _value(declared: Sequence[OutputColumn], name: str | None, column: pa.Array) -> OutputColumn:
    """Return the renderer of an output column, which renders NaN as null if the column is optional."""
    may_be_nan = pa.types.is_floating(column.type) and any(
        value.name == name and not value.required for value in declared
    )
    return OutputColumn(name, "number" if may_be_nan else "any", (), required=False)


def _listed(table: pa.RecordBatch, render: Callable[[pa.RecordBatch], bytes]) -> Iterator[bytes]:
    """Yield a JSON list of the rendered rows, in pieces between which other requests run."""
    for start in range(0, max(1, len(table)), _MAX_ROWS_RENDERED):
        rows = render(table.slice(start, _MAX_ROWS_RENDERED))
        yield (b"," if start else b"[") + rows
    yield b"]"


def _records(fields: list[OutputColumn], rows: pa.RecordBatch) -> bytes:
    parts: list[bytes | JsonFragments] = []
    for index, (value, column) in enumerate(zip(fields, rows.columns, strict=True)):
        parts += [(b"," if index else b"{") + orjson.dumps(str(value.name)) + b":", _texts(value, column)]
    return interleave(*parts, b"},").items_json()


def _only(value: OutputColumn, rows: pa.RecordBatch) -> bytes:
    """Return the values of the only column, separated by commas."""
    innermost = column = rows.column(0)
    while pa.types.is_fixed_size_list(innermost.type):
        innermost = innermost.flatten()
    if pa.types.is_floating(innermost.type) or pa.types.is_integer(innermost.type):
        numbers = from_list_array(column)
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            return b",".join(_texts(value, column).texts)  # null for NaN if the output is optional
        if numbers.dtype.kind == "f":
            numbers = numbers.astype(np.float64, copy=False)
        return orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    return b",".join(_texts(value, column).texts)


def _texts(value: OutputColumn, column: pa.Array) -> JsonFragments:
    found = value.to_json(column)
    if found.invalid_rows:
        raise ModelFailed("its output has a number that is not finite")
    return found
