"""Encode the output of a model as an Arrow stream in the model process, and decode it in the front."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import date, time
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

try:
    from pydantic import BaseModel
except ImportError:  # without pydantic, no output contains one of its models
    BaseModel = ()  # type: ignore[assignment,misc]  # no class matches it

from serving.codecs.model_input import stream
from serving.errors import ModelFailed
from serving.types.nested import JSON, NOT_FINITE
from serving.types.tensors import to_list_array

UNNAMED = ""
"""The name in `depths` of an output without a name."""
_FORM, _REORDERED = b"form", b"reordered"


class OutputForm(str, Enum):
    """The form in which the model returned its output."""

    VALUES = "values"
    """An array or a list: one column."""
    RECORDS = "records"
    """A DataFrame or a Series."""
    COLUMNS = "columns"
    """Arrays or lists by name."""
    WHOLE = "whole"
    """An object that is not one result per row: one JSON text."""


class Depth(NamedTuple):
    """The nesting depth of one row's value: its number of lists, or of dimensions of a tensor."""

    lists: int
    is_tensor: bool = False


def depths(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Depth]:
    """Return the declared nesting depth of one row's value, by name of the output.

    With it, `encode` distinguishes a dict of columns from a dict that is the result. If `shops` is declared
    as an array, a list under that name is one value. If it is declared as a string, a list is a column.
    """
    return {str(spec.get("name", UNNAMED)): _declared_depth(spec) for spec in outputs}


def _declared_depth(spec: Mapping[str, Any]) -> Depth:
    if spec["type"] == "tensor":
        return Depth(len(spec["tensor-spec"]["shape"]) - 1, is_tensor=True)
    return Depth(1 + _declared_depth(spec["items"]).lists if spec["type"] == "array" else 0)


def encode(output: Any, rows: int, declared: Mapping[str, Depth] = MappingProxyType({})) -> bytes:
    """Encode the output of a model for `rows` rows.

    Args:
        output: what the model returned.
        rows: number of rows that the model received.
        declared: the `depths` of the outputs.

    Raises:
        TypeError: the output contains a value that neither Arrow nor JSON can represent.
    """
    try:
        form, names, arrays = _columns(output, declared)
        metadata: dict[bytes, str] = {} if form is OutputForm.VALUES else {_FORM: form}
        if rows > 1 and isinstance(output, (pd.DataFrame, pd.Series)) and _is_reordered(output.index, rows):
            metadata[_REORDERED] = "true"
        batch = pa.RecordBatch.from_arrays(arrays, names=names)
        return stream(batch.replace_schema_metadata(metadata) if metadata else batch)
    except (pa.ArrowException, ValueError, TypeError) as error:
        kind = type(output).__name__
        raise TypeError(f"its output of type {kind} cannot be encoded: {error}") from error


def decode(encoded: bytes) -> pa.RecordBatch:
    """Decode what `encode` has encoded.

    Raises:
        ModelFailed: the bytes are no Arrow stream of one batch.
    """
    try:
        batch = pa.ipc.open_stream(encoded).read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise ModelFailed("the model process sent no table", str(error)) from error
    return batch


def form(table: pa.RecordBatch) -> OutputForm:
    """Return the form of the output that a table holds."""
    return OutputForm((table.schema.metadata or {}).get(_FORM, b"values").decode())


def with_form(table: pa.RecordBatch, form: OutputForm) -> pa.RecordBatch:
    """Return the same columns as an output of another form."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _FORM: form.value})


def concat_ordered(parts: Sequence[pa.RecordBatch], places: Sequence[Sequence[int]]) -> pa.RecordBatch | None:
    """Concatenate tables and put their rows in order; return None if their schemas do not match.

    `places` holds the index of each row in the result, for each part.
    """
    try:
        if len({part.schema for part in parts}) == 1:
            table = pa.concat_batches(parts)
        elif len({(*part.schema.names, str(part.schema.metadata)) for part in parts}) == 1:
            # One part may hold integers and another floats. One call for all rows would have returned floats.
            tables = [pa.Table.from_batches([part]) for part in parts]
            (table,) = pa.concat_tables(tables, promote_options="permissive").combine_chunks().to_batches()
        else:
            return None
    except (pa.ArrowException, ValueError):
        return None
    order = np.concatenate(places)
    return table if (np.diff(order) > 0).all() else table.take(pa.array(np.argsort(order)))


def is_reordered(table: pa.RecordBatch) -> bool:
    """Return whether the index of an output has its rows in another order than the input."""
    return _REORDERED in (table.schema.metadata or {})


def text(chunk: Any) -> bytes:
    """Encode a chunk of a streamed output as JSON.

    Raises:
        TypeError: JSON has no type for the value.
    """
    return _text(chunk).encode()


def to_json_value(chunk: bytes) -> bytes:
    """Return a chunk of a streamed output as JSON without line breaks.

    Raises:
        ModelFailed: the chunk is no JSON, for example because a number is not finite.
    """
    try:
        return orjson.dumps(orjson.loads(chunk))
    except ValueError as error:
        raise ModelFailed("it returned a value that JSON cannot represent", str(error)) from error


def _is_reordered(index: pd.Index[Any], rows: int) -> bool:
    if index.dtype.kind != "i" or isinstance(index, pd.RangeIndex):
        return isinstance(index, pd.RangeIndex) and (index.start, index.step) != (0, 1)
    places = index.to_numpy()
    within = bool(len(places)) and places.min() >= 0 and places.max() < rows
    return within and not np.array_equal(places, np.arange(len(places)))


def _columns(output: Any, declared: Mapping[str, Depth]) -> tuple[OutputForm, list[str], list[pa.Array]]:
    if isinstance(output, pd.Series):
        output = output.to_frame(0 if output.name is None else output.name)
    if isinstance(output, pd.DataFrame):
        columns = [_array(output.iloc[:, index]) for index in range(output.shape[1])]
        return OutputForm.RECORDS, [*map(str, output.columns)], columns
    if isinstance(output, (list, tuple)) and _is_one_array(output, declared):
        return OutputForm.WHOLE, ["0"], [_json_array([output])]
    if isinstance(output, (list, tuple)) or (isinstance(output, np.ndarray) and output.ndim):
        return OutputForm.VALUES, ["0"], [_array(output)]
    if isinstance(output, Mapping) and _is_columnar(output, declared):
        return OutputForm.COLUMNS, [*map(str, output)], [*map(_array, output.values())]
    return OutputForm.WHOLE, ["0"], [_json_array([output])]


def _is_columnar(output: Mapping[Any, Any], declared: Mapping[str, Depth]) -> bool:
    """Return whether a dict holds a column per declared output, and not one value per output.

    The lengths only have to be equal. The declared depth decides, because a value can be as long as a column.
    """
    if not declared or {*map(str, output)} != declared.keys():
        return False
    return len({_length(values) for values in output.values()}) == 1 and all(
        _depth(values) == declared[str(name)].lists + 1 for name, values in output.items()
    )


def _is_one_array(output: Sequence[Any], declared: Mapping[str, Depth]) -> bool:
    """Return whether a list is the value of the only output, an array, and not one value per row."""
    (only, *others) = declared.values() or (Depth(0),)
    is_array = only.lists > 0 and not only.is_tensor and not others
    return is_array and bool(output) and _depth([*output]) == only.lists


def _length(values: Any) -> int:
    return len(values) if isinstance(values, (list, np.ndarray)) and _depth(values) else -1


def _depth(value: Any) -> int:
    """Return the number of lists or dimensions around the first value."""
    if isinstance(value, np.ndarray):
        return value.ndim + (_depth(value.flat[0]) if value.dtype == object and value.size else 0)
    if isinstance(value, list):
        return 1 + _depth(value[0] if value else None)
    return 0


def _array(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return to_list_array(values)
    if _contains_objects(values):
        return _json_array(values)
    # pyarrow would convert NaN in a Series to null, as pandas does, which is another value.
    if isinstance(values, pd.Series) and isinstance(values.dtype, np.dtype) and values.dtype.kind == "f":
        values = values.to_numpy()
    try:
        array = pa.array(values)
    except pa.ArrowException:  # values of several types in one column
        return _json_array(values)
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _contains_objects(values: Any) -> bool:
    if getattr(values, "dtype", np.dtype(object)).kind != "O":
        return False
    return any(map(_is_object, values))


def _is_object(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_object, value))
    return isinstance(value, (Mapping, BaseModel))


def _json_array(values: Any) -> pa.Array:
    """Return the values as JSON texts: null for a missing value, `NaN` for one that is not finite."""
    texts = [None if _is_missing(value) else _text(value) for value in values]
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NaT or (isinstance(value, float) and value != value)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, default=_to_jsonable, allow_nan=False, ensure_ascii=False)
    except ValueError:
        return NOT_FINITE


def _to_jsonable(value: Any) -> Any:
    """Return a value in JSON types, as MLflow's scoring server does.

    Raises:
        TypeError: JSON has no type for the value.
    """
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.datetime64):
        return np.datetime_as_string(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, (date, time)):  # including datetime and pandas.Timestamp
        return value.isoformat()
    if isinstance(value, BaseModel):
        return value.model_dump() if hasattr(value, "model_dump") else value.dict()
    raise TypeError(f"JSON cannot represent a {type(value).__name__}")
