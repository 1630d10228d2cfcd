"""A model's answer on its way from the model process to the front: an Arrow stream of one batch."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import date, time
from enum import Enum
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

try:
    from pydantic import BaseModel
except ImportError:  # no answer in an environment without it holds one
    BaseModel = ()  # type: ignore[assignment,misc]

from serving.errors import ModelFailed
from serving.runtime.nesting import JSON, NOT_FINITE
from serving.runtime.table import stream
from serving.runtime.tensors import lists

_FORM = b"form"


class Form(str, Enum):
    """What the model answered."""

    VALUES = "values"
    """An array or a list: one column."""
    RECORDS = "records"
    """A DataFrame or a Series."""
    COLUMNS = "columns"
    """Arrays or lists by name."""
    WHOLE = "whole"
    """Something that is not one thing a row: one JSON text."""


def encode(answer: Any, rows: int) -> bytes:
    """A model's answer to so many rows.

    Raises:
        TypeError: it holds what neither Arrow nor JSON can say.
    """
    try:
        form, names, arrays = _columns(answer, rows)
        batch = pa.RecordBatch.from_arrays(arrays, names=names)
        return stream(batch if form is Form.VALUES else batch.replace_schema_metadata({_FORM: form}))
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


def form(table: pa.RecordBatch) -> Form:
    """What the model answered, that this table tells."""
    return Form((table.schema.metadata or {}).get(_FORM, b"values").decode())


def text(chunk: Any) -> bytes:
    """A bit of an answer, as JSON.

    Raises:
        TypeError: it is what JSON can't say.
    """
    return _text(chunk).encode()


def retold(chunk: bytes) -> bytes:
    """A bit of an answer, in one line.

    Raises:
        ModelFailed: it is no JSON, which has no word for what is not finite.
    """
    try:
        return orjson.dumps(orjson.loads(chunk))
    except ValueError as error:
        raise ModelFailed("it answered what JSON can't say", str(error)) from error


def _columns(answer: Any, rows: int) -> tuple[Form, list[str], list[pa.Array]]:
    if isinstance(answer, pd.Series):
        answer = answer.to_frame(0 if answer.name is None else answer.name)
    if isinstance(answer, pd.DataFrame):
        columns = [_array(answer.iloc[:, index]) for index in range(answer.shape[1])]
        return Form.RECORDS, [*map(str, answer.columns)], columns
    if isinstance(answer, (list, tuple)) or (isinstance(answer, np.ndarray) and answer.ndim):
        return Form.VALUES, ["0"], [_array(answer)]
    if isinstance(answer, Mapping) and _is_columnar(answer, rows):
        return Form.COLUMNS, [*map(str, answer)], [*map(_array, answer.values())]
    return Form.WHOLE, ["0"], [_texts([answer])]


def _is_columnar(answer: Mapping[Any, Any], rows: int) -> bool:
    return bool(answer) and all(
        isinstance(values, (np.ndarray, list)) and len(values) == rows for values in answer.values()
    )


def _array(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return lists(values)
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
