"""Encodes rows as JSON and tables as Arrow streams, without a change of any value.

A value that JSON or Arrow cannot represent exactly is an error of the caller, and is not sent.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any
from uuid import UUID

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"


def to_json(value: Any) -> bytes:
    """Return JSON in UTF-8.

    Bytes become base64, dates and times ISO 8601, numpy's scalars and arrays the values they contain, and
    pandas' NaT and NA null.

    Raises:
        ValueError: A number is not finite, or a time has nanoseconds: JSON cannot express them.
        TypeError: A value has no counterpart in JSON.
    """
    return json.dumps(to_jsonable(value), allow_nan=False, separators=(",", ":")).encode()


def to_jsonable(value: Any) -> Any:
    """Return a value as the types of JSON; raises as `to_json`."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"JSON cannot express {value}: send None for a missing value, or a DataFrame.")
        return float(value)
    if isinstance(value, Mapping):
        return _object(value)
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    return _foreign(value)


def _object(fields: Mapping[Any, Any]) -> dict[str, Any]:
    encoded = {str(name): to_jsonable(value) for name, value in fields.items()}
    if len(encoded) != len(fields):
        raise ValueError("Two fields have the same name as text.")
    return encoded


def _time(value: Any) -> str | None:
    if value != value:  # NaT
        return None
    if getattr(value, "nanosecond", 0):
        raise ValueError(f"JSON carries microseconds, not the nanoseconds of {value}: send a DataFrame.")
    text: str = value.isoformat()
    return text


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()


_CONVERSIONS: Sequence[tuple[Any, Callable[[Any], Any]]] = (
    (datetime | date | time, _time),
    (bytes | bytearray | memoryview, _base64),
    (UUID, str),
)


_PLAIN_KINDS = "biufOSU"
"""The kinds of numpy's types that `tolist` keeps: it returns times and durations as integers."""


def _foreign(value: Any) -> Any:
    """Convert a value of numpy or pandas; this module imports neither."""
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if pandas and value is pandas.NA:
        return None
    if numpy and isinstance(value, numpy.datetime64):
        return _datetime64(value, numpy)
    if numpy and isinstance(value, numpy.ndarray):
        is_plain = value.dtype.kind in _PLAIN_KINDS
        return to_jsonable((value.tolist() if is_plain else [*value]) if value.ndim else value[()])
    if numpy and isinstance(value, numpy.generic) and value.dtype.kind in _PLAIN_KINDS:
        converted = value.item()
        if type(converted) is not type(value):  # a long double stays what it is
            return to_jsonable(converted)
    if pandas and isinstance(value, pandas.Series):
        return to_jsonable(value.tolist())
    raise TypeError(f"A value of type {type(value).__name__} has no counterpart in JSON.")


def _datetime64(value: Any, numpy: Any) -> str | None:
    if numpy.isnat(value):
        return None
    in_microseconds = value.astype("datetime64[us]")
    if in_microseconds != value:
        raise ValueError(f"JSON carries microseconds, not the nanoseconds of {value}: send a DataFrame.")
    return str(in_microseconds)


def is_table(value: Any) -> bool:
    """Check whether a value is a DataFrame or an Arrow table."""
    pandas = sys.modules.get("pandas")
    is_arrow = hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")
    return is_arrow or bool(pandas and isinstance(value, pandas.DataFrame))


def to_arrow(table: Any) -> bytes:
    """Return the Arrow stream of a DataFrame, an Arrow table, or an object with an Arrow C interface.

    NaN in a pandas DataFrame is a missing value, and becomes null, as MLflow reads it.

    Raises:
        ValueError: Two columns have the same name, or Arrow cannot represent a column.
    """
    import pyarrow as pa

    pandas = sys.modules.get("pandas")
    try:
        is_frame = pandas and isinstance(table, pandas.DataFrame)
        arrow = _from_pandas(table, pa) if is_frame else pa.table(table)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"Arrow cannot represent the table: {error}. Send its rows as dicts.") from None
    _check_names(arrow.column_names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, arrow.schema.remove_metadata()) as writer:
        writer.write_table(arrow)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _from_pandas(frame: Any, pa: Any) -> Any:
    names = _check_names(frame.columns)
    arrow = pa.Table.from_pandas(frame.set_axis(names, axis=1), preserve_index=False)
    for index, field in enumerate(arrow.schema):
        # Arrow fills the fields that some objects lack with null, which the model would receive.
        if "struct<" in str(field.type):
            values = frame.iloc[:, index].tolist()
            if to_jsonable(arrow.column(index).to_pylist()) != to_jsonable(values):
                raise TypeError(f"the objects in column {field.name} differ in their fields")
    return arrow


def _check_names(columns: Sequence[Any]) -> list[str]:
    names = [str(name) for name in columns]
    if len({*names}) != len(names):
        raise ValueError("Two columns of the table have the same name.")
    return names


def to_query(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return model parameters as a query: a list repeats its parameter, and all but texts are JSON."""
    return [(name, _text(item)) for name, value in params.items() for item in _items(to_jsonable(value))]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)
