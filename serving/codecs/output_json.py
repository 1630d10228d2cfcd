"""Render the values of an output column as JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import compute
from pydantic import TypeAdapter, ValidationError

from serving.errors import ModelFailed
from serving.types.column_type import column_type
from serving.types.nested import JSON, to_python

_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": "string", "format": "date-time"},
    "any": {},
}


_KINDS_WITHOUT_NULL = frozenset({"number", "integer", "boolean"})


class NotFinite:
    """The type of `NOT_FINITE`."""

    def __repr__(self) -> str:
        return "NOT_FINITE"


NOT_FINITE = NotFinite()
"""Marks a value that JSON cannot represent (NaN, infinity), or a missing value of a required column."""


@dataclass(frozen=True, slots=True)
class JsonFragments:
    """One JSON text per row. `invalid_rows` are the rows whose value is missing or not finite."""

    texts: list[bytes]
    invalid_rows: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """An output column: the kind and shape of its values, and whether they are required."""

    name: str | None
    kind: str
    shape: tuple[int, ...] = ()
    required: bool = True
    type: str = ""
    """The type of a nested value, in MLflow's JSON."""

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one value."""
        schema = dict(column_type(self.type).schema if self.type else _SCHEMAS[self.kind])
        if self._may_be_null and "type" in schema:
            schema["type"] = [schema["type"], "null"]
        for size in reversed(self.shape):
            schema = {"type": "array", "items": schema}
            if size >= 0:
                schema |= {"minItems": size, "maxItems": size}
        return schema

    def to_json(self, array: pa.Array) -> JsonFragments:
        """Return the values as JSON texts.

        Raises:
            ModelFailed: the values do not have this type and shape.
        """
        if self.type:
            return self._nested_texts(array)
        if array.type == JSON:
            array = self._from_json(array)
        flat = self._flatten(array)
        if not self._accepts(flat.type):
            raise self._mismatch(array)
        plain = _is_plain(flat)
        if plain and flat is array and pa.types.is_primitive(array.type):
            return JsonFragments(number_fragments(array.to_numpy(zero_copy_only=False)))
        values = to_python(array)
        jsonable = values if plain else [self._to_jsonable(value) for value in values]
        invalid = [row for row, value in enumerate(jsonable) if value is NOT_FINITE]
        texts = [b"" if value is NOT_FINITE else orjson.dumps(value) for value in jsonable]
        return JsonFragments(texts, invalid)

    def _nested_texts(self, array: pa.Array) -> JsonFragments:
        annotation: Any = column_type(self.type).annotation({})
        jsonable = [to_jsonable(value) for value in to_python(array)]
        invalid = {row for row, value in enumerate(jsonable) if value is NOT_FINITE}
        values = [None if row in invalid else value for row, value in enumerate(jsonable)]
        try:
            TypeAdapter(list[annotation | None]).validate_python(values)
        except ValidationError:
            raise self._mismatch(array) from None
        return JsonFragments([*map(orjson.dumps, values)], invalid)

    def _from_json(self, array: pa.Array) -> pa.Array:
        if self.kind == "any":
            return array
        try:
            return pa.array(to_python(array))
        except pa.ArrowException:
            raise self._mismatch(array) from None

    def _flatten(self, array: pa.Array) -> pa.Array:
        flat = array
        for size in self.shape:
            if not pa.types.is_list(flat.type) and not pa.types.is_fixed_size_list(flat.type):
                raise self._mismatch(array)
            lengths = compute.list_value_length(flat)
            if lengths.null_count or (size >= 0 and compute.any(compute.not_equal(lengths, size)).as_py()):
                raise self._mismatch(array)
            flat = flat.flatten()
        return flat

    @property
    def _may_be_null(self) -> bool:
        """Whether null is valid. MLflow writes None as null, except in a required column of numbers."""
        return not self.required or not (self.shape or self.kind in _KINDS_WITHOUT_NULL)

    def _to_jsonable(self, value: Any) -> Any:
        # pandas represents a missing value in an optional column of numbers as NaN.
        if value is None or (self.kind == "number" and value != value):
            return None if self._may_be_null else NOT_FINITE
        jsonable = to_jsonable(value)
        return NOT_FINITE if self.shape and not self._may_be_null and _has_null(jsonable) else jsonable

    def _accepts(self, type: pa.DataType) -> bool:
        if pa.types.is_null(type):
            return True
        checks = {
            "number": pa.types.is_floating(type) or pa.types.is_integer(type),
            "integer": pa.types.is_integer(type),
            "boolean": pa.types.is_boolean(type),
            "string": pa.types.is_string(type) or pa.types.is_large_string(type),
            "binary": pa.types.is_binary(type),
            "datetime": pa.types.is_timestamp(type),
        }
        return bool(checks.get(self.kind, True))

    @property
    def description(self) -> str:
        """The kind and the shape of one value, for messages."""
        return (
            column_type(self.type).name
            if self.type
            else self.kind + "".join(f"[{size if size >= 0 else 'n'}]" for size in self.shape)
        )

    def _mismatch(self, array: pa.Array) -> ModelFailed:
        return ModelFailed(f"the model returned {array.type}, but its signature declares {self.description}")


def number_fragments(array: np.ndarray[Any, Any]) -> list[bytes]:
    """Return the numbers or booleans of an array as JSON texts, row by row."""
    if array.dtype.kind == "f":
        array = array.astype(np.float64, copy=False)
    flat = np.ascontiguousarray(array).reshape(-1)
    return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",") if flat.size else []


def _is_plain(array: pa.Array) -> bool:
    """Return whether JSON can represent all values, as far as the type and vectorized checks show."""
    kind = array.type
    if array.null_count:
        return False
    if pa.types.is_floating(kind):
        return bool(np.isfinite(array.to_numpy(zero_copy_only=False)).all())
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def to_jsonable(value: Any) -> Any:
    """Return a value in JSON types; `NOT_FINITE` if it contains a number that is not finite.

    Raises:
        ModelFailed: JSON has no type for the value.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else NOT_FINITE
    if isinstance(value, (list, tuple)):
        items = [to_jsonable(item) for item in value]
        return NOT_FINITE if NOT_FINITE in items else items
    if isinstance(value, dict):
        fields = {name: to_jsonable(item) for name, item in value.items()}
        return NOT_FINITE if NOT_FINITE in fields.values() else fields
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (date, time)):  # including datetime and pandas.Timestamp
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ModelFailed(f"the model returned a {type(value).__name__}, which JSON cannot represent")


def _has_null(value: Any) -> bool:
    return any(map(_has_null, value)) if isinstance(value, list) else value is None
