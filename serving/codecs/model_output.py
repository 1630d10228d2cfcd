"""A model's answer on its way from the model process to the front: an Arrow stream of one batch."""

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
except ImportError:  # no answer in an environment without it holds one
    BaseModel = ()  # type: ignore[assignment,misc]

from serving.codecs.model_input import stream
from serving.errors import ModelFailed
from serving.types.nested import JSON, NOT_FINITE
from serving.types.tensors import to_list_array

UNNAMED = ""
"""The name in `depths` of an output that has none."""
_FORM, _REORDERED = b"form", b"reordered"


class OutputForm(str, Enum):
    """What the model answered."""

    VALUES = "values"
    """An array or a list: one column."""
    RECORDS = "records"
    """A DataFrame or a Series."""
    COLUMNS = "columns"
    """Arrays or lists by name."""
    WHOLE = "whole"
    """Something that is not one thing a row: one JSON text."""


class Depth(NamedTuple):
    """How many lists, or dimensions of a tensor, one row's value of an output is nested in."""

    lists: int
    is_tensor: bool = False


def depths(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Depth]:
    """Return how deep one row's value of each output is nested, as a signature declares it.

    With this, `encode` tells a dict of columns from one that is a result itself: where `shops` is declared as
    an array, a list under that name is one value; where it is declared as a string, a list is a column.
    """
    return {str(spec.get("name", UNNAMED)): _declared_depth(spec) for spec in outputs}


def _declared_depth(spec: Mapping[str, Any]) -> Depth:
    if spec["type"] == "tensor":
        return Depth(len(spec["tensor-spec"]["shape"]) - 1, is_tensor=True)
    return Depth(1 + _declared_depth(spec["items"]).lists if spec["type"] == "array" else 0)


def encode(answer: Any, rows: int, declared: Mapping[str, Depth] = MappingProxyType({})) -> bytes:
    """Encode a model's answer to so many rows; `declared` are the `depths` of its outputs.

    Raises:
        TypeError: it holds what neither Arrow nor JSON can say.
    """
    try:
        form, names, arrays = _columns(answer, declared)
        metadata: dict[bytes, str] = {} if form is OutputForm.VALUES else {_FORM: form}
        if rows > 1 and isinstance(answer, (pd.DataFrame, pd.Series)) and _is_reordered(answer.index, rows):
            metadata[_REORDERED] = "true"
        batch = pa.RecordBatch.from_arrays(arrays, names=names)
        return stream(batch.replace_schema_metadata(metadata) if metadata else batch)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise TypeError(f"its answer of type {type(answer).__name__} can't be told: {error}") from error


def decode(encoded: bytes) -> pa.RecordBatch:
    """What `encode` made.

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
    """What the model answered, that this table tells."""
    return OutputForm((table.schema.metadata or {}).get(_FORM, b"values").decode())


def is_reordered(table: pa.RecordBatch) -> bool:
    """Return whether the index of a model's answer puts its rows in another order than the input's."""
    return _REORDERED in (table.schema.metadata or {})


def text(chunk: Any) -> bytes:
    """A bit of an answer, as JSON.

    Raises:
        TypeError: it is what JSON can't say.
    """
    return _text(chunk).encode()


def to_json_value(chunk: bytes) -> bytes:
    """A bit of an answer, in one line.

    Raises:
        ModelFailed: it is no JSON, which has no word for what is not finite.
    """
    try:
        return orjson.dumps(orjson.loads(chunk))
    except ValueError as error:
        raise ModelFailed("it answered what JSON can't say", str(error)) from error


def _is_reordered(index: pd.Index[Any], rows: int) -> bool:
    if index.dtype.kind != "i" or isinstance(index, pd.RangeIndex):
        return isinstance(index, pd.RangeIndex) and (index.start, index.step) != (0, 1)
    places = index.to_numpy()
    within = bool(len(places)) and places.min() >= 0 and places.max() < rows
    return within and not np.array_equal(places, np.arange(len(places)))


def _columns(answer: Any, declared: Mapping[str, Depth]) -> tuple[OutputForm, list[str], list[pa.Array]]:
    if isinstance(answer, pd.Series):
        answer = answer.to_frame(0 if answer.name is None else answer.name)
    if isinstance(answer, pd.DataFrame):
        columns = [_array(answer.iloc[:, index]) for index in range(answer.shape[1])]
        return OutputForm.RECORDS, [*map(str, answer.columns)], columns
    if isinstance(answer, (list, tuple)) and _is_one_array(answer, declared):
        return OutputForm.WHOLE, ["0"], [_texts([answer])]
    if isinstance(answer, (list, tuple)) or (isinstance(answer, np.ndarray) and answer.ndim):
        return OutputForm.VALUES, ["0"], [_array(answer)]
    if isinstance(answer, Mapping) and _is_columnar(answer, declared):
        return OutputForm.COLUMNS, [*map(str, answer)], [*map(_array, answer.values())]
    return OutputForm.WHOLE, ["0"], [_texts([answer])]


def _is_columnar(answer: Mapping[Any, Any], declared: Mapping[str, Depth]) -> bool:
    """Return whether a dict has a column for each declared output, not the value of one.

    Its own lengths count only as far as columns have one in common.
    """
    if not declared or {*map(str, answer)} != declared.keys():
        return False
    return len({_length(values) for values in answer.values()}) == 1 and all(
        _depth(values) == declared[str(name)].lists + 1 for name, values in answer.items()
    )


def _is_one_array(answer: Sequence[Any], declared: Mapping[str, Depth]) -> bool:
    """Return whether a list is the value of the only output, an array, and not one value per row."""
    (only, *others) = declared.values() or (Depth(0),)
    is_array = only.lists > 0 and not only.is_tensor and not others
    return is_array and bool(answer) and _depth([*answer]) == only.lists


def _length(values: Any) -> int:
    return len(values) if isinstance(values, (list, np.ndarray)) and _depth(values) else -1


def _depth(value: Any) -> int:
    """Return how many lists or dimensions the first value is nested in."""
    if isinstance(value, np.ndarray):
        return value.ndim + (_depth(value.flat[0]) if value.dtype == object and value.size else 0)
    if isinstance(value, list):
        return 1 + _depth(value[0] if value else None)
    return 0


def _array(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return to_list_array(values)
    if _holds_objects(values):
        return _texts(values)
    # What is NaN in a column of numbers would become null, as pandas has it, which is another answer.
    if isinstance(values, pd.Series) and isinstance(values.dtype, np.dtype) and values.dtype.kind == "f":
        values = values.to_numpy()
    try:
        array = pa.array(values)
    except pa.ArrowException:  # values of several types in one column
        return _texts(values)
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _holds_objects(values: Any) -> bool:
    if getattr(values, "dtype", np.dtype(object)).kind != "O":
        return False
    return any(map(_is_object, values))


def _is_object(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_object, value))
    return isinstance(value, (Mapping, BaseModel))


def _texts(values: Any) -> pa.Array:
    """Each value as a JSON text: null where there is none, `NaN` for what is not finite."""
    texts = [
        None if each is None or each is pd.NaT or (isinstance(each, float) and each != each) else _text(each)
        for each in values
    ]
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def _text(value: Any) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False)
    except ValueError:
        return NOT_FINITE


def _plain(value: Any) -> Any:
    """What stands in JSON for a value that it can't say, as MLflow's own server writes it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.datetime64):
        return np.datetime_as_string(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, (date, time)):  # which a datetime is, and pandas' Timestamp
        return value.isoformat()
    if isinstance(value, BaseModel):
        return value.model_dump() if hasattr(value, "model_dump") else value.dict()
    raise TypeError(f"a {type(value).__name__} can't be told in JSON")
