"""The values of one output column: what the model process sent, as JSON has it."""

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


_WITHOUT_NULLS = frozenset({"number", "integer", "boolean"})


class NotFinite:
    """The type of `NOT_FINITE`."""

    def __repr__(self) -> str:
        return "NOT_FINITE"


NOT_FINITE = NotFinite()
"""Stands where a model answered NaN or infinity, which JSON can't say, or nothing where it must answer."""


@dataclass(frozen=True, slots=True)
class JsonFragments:
    """JSON texts, one for each row; `bad` are the rows where JSON can't say a value, or one is missing."""

    texts: list[bytes]
    invalid_rows: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """One output column: what its values are, the shape of one, and whether one may be null."""

    name: str | None
    kind: str
    shape: tuple[int, ...] = ()
    required: bool = True
    type: str = ""
    """The JSON in which MLflow writes the type of a nested value."""

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
        """The values as JSON texts.

        Raises:
            ModelFailed: they are not of this type and shape.
        """
        if self.type:
            return self._nested_texts(array)
        if array.type == JSON:
            array = self._unpacked(array)
        flat = self._flat(array)
        if not self._holds(flat.type):
            raise self._unlike(array)
        plain = _is_plain(flat)
        if plain and flat is array and pa.types.is_primitive(array.type):
            return JsonFragments(number_fragments(array.to_numpy(zero_copy_only=False)))
        values = to_python(array)
        said = values if plain else [self._said(value) for value in values]
        bad = [row for row, value in enumerate(said) if value is NOT_FINITE]
        return JsonFragments([b"" if value is NOT_FINITE else orjson.dumps(value) for value in said], bad)

    def _nested_texts(self, array: pa.Array) -> JsonFragments:
        annotation: Any = column_type(self.type).annotation({})
        found = [to_jsonable(value) for value in to_python(array)]
        bad = {row for row, value in enumerate(found) if value is NOT_FINITE}
        values = [None if row in bad else value for row, value in enumerate(found)]
        try:
            TypeAdapter(list[annotation | None]).validate_python(values)
        except ValidationError:
            raise self._unlike(array) from None
        return JsonFragments([*map(orjson.dumps, values)], bad)

    def _unpacked(self, array: pa.Array) -> pa.Array:
        if self.kind == "any":
            return array
        try:
            return pa.array(to_python(array))
        except pa.ArrowException:
            raise self._unlike(array) from None

    def _flat(self, array: pa.Array) -> pa.Array:
        flat = array
        for size in self.shape:
            if not pa.types.is_list(flat.type) and not pa.types.is_fixed_size_list(flat.type):
                raise self._unlike(array)
            lengths = compute.list_value_length(flat)
            if lengths.null_count or (size >= 0 and compute.any(compute.not_equal(lengths, size)).as_py()):
                raise self._unlike(array)
            flat = flat.flatten()
        return flat

    @property
    def _may_be_null(self) -> bool:
        """Whether null is a value: in a column of objects, as MLflow writes None; not of required numbers."""
        return not self.required or not (self.shape or self.kind in _WITHOUT_NULLS)

    def _said(self, value: Any) -> Any:
        # A gap in an optional column of numbers is NaN in pandas.
        if value is None or (self.kind == "number" and value != value):
            return None if self._may_be_null else NOT_FINITE
        said = to_jsonable(value)
        return NOT_FINITE if self.shape and not self._may_be_null and _has_gap(said) else said

    def _holds(self, found: pa.DataType) -> bool:
        if pa.types.is_null(found):
            return True
        checks = {
            "number": pa.types.is_floating(found) or pa.types.is_integer(found),
            "integer": pa.types.is_integer(found),
            "boolean": pa.types.is_boolean(found),
            "string": pa.types.is_string(found) or pa.types.is_large_string(found),
            "binary": pa.types.is_binary(found),
            "datetime": pa.types.is_timestamp(found),
        }
        return bool(checks.get(self.kind, True))

    @property
    def told(self) -> str:
        """The kind and the shape of one value."""
        return (
            column_type(self.type).told
            if self.type
            else self.kind + "".join(f"[{size if size >= 0 else 'n'}]" for size in self.shape)
        )

    def _unlike(self, array: pa.Array) -> ModelFailed:
        return ModelFailed(f"the model answered {array.type} where its signature says {self.told}")


def number_fragments(array: np.ndarray[Any, Any]) -> list[bytes]:
    """The numbers or booleans of an array, row by row, as JSON texts."""
    if array.dtype.kind == "f":
        array = array.astype(np.float64, copy=False)
    flat = np.ascontiguousarray(array).reshape(-1)
    return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",") if flat.size else []


def _is_plain(array: pa.Array) -> bool:
    """Whether its values are what JSON has, all of them, without looking at each."""
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
    """A value as JSON has it; `NOT_FINITE` where there is a number in it that JSON can't say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else NOT_FINITE
    if isinstance(value, (list, tuple)):
        said = [to_jsonable(each) for each in value]
        return NOT_FINITE if NOT_FINITE in said else said
    if isinstance(value, dict):
        fields = {name: to_jsonable(each) for name, each in value.items()}
        return NOT_FINITE if NOT_FINITE in fields.values() else fields
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (date, time)):  # which a datetime is, and pandas' Timestamp
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ModelFailed(f"the model answered a {type(value).__name__}, which JSON can't say")


def _has_gap(value: Any) -> bool:
    return any(map(_has_gap, value)) if isinstance(value, list) else value is None
