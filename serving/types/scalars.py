"""MLflow's scalar types in Python, Arrow and JSON Schema.

Validation is stricter than the coercions of `json` and pandas: `true` is not a number, `1.9` is not an
integer, NaN and infinity are rejected, and integers must be within the range of their width. A datetime with
a time zone is converted to UTC. As in JSON Schema, `1` is a valid double and `1.0` a valid integer.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any

import pyarrow as pa

from serving.types.constraints import ANNOTATIONS, BOUNDS, LENGTHS

FLOAT32_MAX = 3.4028234663852886e38
# pandas stores nanoseconds in 64 bits, which limits datetimes to these years.
_YEARS = range(1678, 2262)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")

if sys.version_info >= (3, 11):
    _read_datetime = datetime.fromisoformat
else:  # before 3.11, `fromisoformat` reads only the format that `isoformat` writes
    from dateutil.parser import isoparse as _read_datetime


def _datetime(value: str) -> datetime:
    try:
        if not _ISO_DATE.match(value):
            raise ValueError
        parsed = _read_datetime(value)
    except ValueError:
        raise ValueError("Input should be an ISO 8601 date or datetime") from None
    if parsed.year not in _YEARS:
        raise ValueError(f"Input should be between the years {_YEARS[0]} and {_YEARS[-1]}")
    return parsed if parsed.tzinfo is None else parsed.astimezone(timezone.utc).replace(tzinfo=None)


def _bytes(value: str) -> bytes:
    try:
        # MLflow's encoder inserts line breaks, as MIME does.
        return base64.b64decode(value.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("Input should be base64") from None


@dataclass(frozen=True, slots=True)
class Scalar:
    """One scalar type in Python, Arrow and JSON Schema."""

    name: str
    """MLflow's name of the type."""
    python: Any
    arrow: pa.DataType
    schema: dict[str, Any]
    bounds: Mapping[str, str]
    """The JSON Schema keywords that limit its values, with pydantic's names for them."""
    convert: Callable[[str], Any] | None = None
    """Converts the JSON text of a value."""
    nullable: bool = True

    @property
    def is_object(self) -> bool:
        """Return whether a DataFrame column has dtype object, at least if values are missing."""
        return self.arrow in (pa.string(), pa.binary(), pa.bool_())

    @property
    def keywords(self) -> frozenset[str]:
        """Return the keywords of JSON Schema that apply to its values."""
        return frozenset({*self.bounds, *ANNOTATIONS, *(() if self.convert else ("enum",))})

    def json_schema(self, constraints: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of one value with these constraints."""
        schema = self._effective_bounds(constraints)
        # Omit a bound that another one implies.
        if schema.get("exclusiveMinimum", -math.inf) >= schema.get("minimum", math.inf):
            del schema["minimum"]
        if schema.get("exclusiveMaximum", math.inf) <= schema.get("maximum", -math.inf):
            del schema["maximum"]
        return schema

    def annotation(self, constraints: Mapping[str, Any]) -> Any:
        """Return the strict pydantic type of one value with these constraints."""
        from pydantic import AfterValidator, BeforeValidator, Field

        schema = self._effective_bounds(constraints)
        limits = {name: schema[keyword] for keyword, name in self.bounds.items() if keyword in schema}
        if self.python is int:
            limits = {name: int(limit) for name, limit in limits.items()}
        if self.python is float:
            limits["allow_inf_nan"] = False
        before = [BeforeValidator(coerce_integral)] if self.python is int else []
        extra: list[Any] = [AfterValidator(self.convert)] if self.convert else []
        if "enum" in schema:
            extra.append(AfterValidator(_one_of(schema["enum"])))
        python: Any = self.python
        return Annotated[(python, *before, Field(strict=True, **limits), *extra)]

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Return valid values, or None for missing ones, as an Arrow array."""
        return pa.array(values, self.arrow)

    def _effective_bounds(self, constraints: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schema with the constraints; they cannot extend the range of the type."""
        schema = self.schema | dict(constraints)
        if "minimum" in schema:
            schema["minimum"] = max(schema["minimum"], self.schema.get("minimum", -math.inf))
        if "maximum" in schema:
            schema["maximum"] = min(schema["maximum"], self.schema.get("maximum", math.inf))
        return schema


def coerce_integral(value: Any) -> Any:
    """Return an integral float as an integer: in JSON Schema, `1.0` is an integer.

    Floats beyond 64 bits stay floats: JSON parsers read integers beyond 64 bits as floats, and lose digits.
    """
    is_whole = type(value) is float and value.is_integer() and abs(value) < 2**63
    return int(value) if is_whole else value


def _one_of(values: tuple[Any, ...]) -> Callable[[Any], Any]:
    listed = ", ".join(repr(value) for value in values[:20])

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"Input should be one of {listed}")
        return value

    return check


def _integer(name: str, bits: int, arrow: pa.DataType) -> Scalar:
    schema = {
        "type": "integer",
        "format": f"int{bits}",
        "minimum": -(2 ** (bits - 1)),
        "maximum": 2 ** (bits - 1) - 1,
    }
    # pyfunc rejects a null in an integer column, even in an optional one.
    return Scalar(name, int, arrow, schema, BOUNDS, nullable=False)


_FLOAT = {"type": "number", "format": "float", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
_ISO = {"type": "string", "format": "date-time"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_ALL = (
    Scalar("boolean", bool, pa.bool_(), {"type": "boolean"}, {}),
    _integer("integer", 32, pa.int32()),
    _integer("long", 64, pa.int64()),
    Scalar("float", float, pa.float32(), _FLOAT, BOUNDS),
    Scalar("double", float, pa.float64(), {"type": "number", "format": "double"}, BOUNDS),
    Scalar("string", str, pa.string(), {"type": "string"}, LENGTHS),
    Scalar("binary", str, pa.binary(), _BASE64, {}, _bytes),
    Scalar("datetime", str, pa.timestamp("ns"), _ISO, {}, _datetime),
)
SCALARS: Mapping[str, Scalar] = {scalar.name: scalar for scalar in _ALL}
"""The scalar types by MLflow's names."""
