"""MLflow's scalar types, and what each is in Python, Arrow and JSON Schema.

What they take is narrower than what `json` or pandas would coerce: `true` is no number, `1.9` no integer, NaN
and infinity are refused, integers have the range of their width, a datetime with a zone becomes UTC. As in
JSON Schema, `1` is a fine double and `1.0` a fine integer.
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
# pandas keeps nanoseconds in 64 bits, which ends within these years.
_YEARS = range(1678, 2262)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")

if sys.version_info >= (3, 11):
    _read_datetime = datetime.fromisoformat
else:  # there, `fromisoformat` reads only what `isoformat` writes
    from dateutil.parser import isoparse as _read_datetime


def _datetime(value: str) -> datetime:
    try:
        if not _ISO_DATE.match(value):
            raise ValueError
        found = _read_datetime(value)
    except ValueError:
        raise ValueError("Input should be an ISO 8601 date or datetime") from None
    if found.year not in _YEARS:
        raise ValueError(f"Input should be between the years {_YEARS[0]} and {_YEARS[-1]}")
    return found if found.tzinfo is None else found.astimezone(timezone.utc).replace(tzinfo=None)


def _bytes(value: str) -> bytes:
    try:
        # MLflow's own encoder breaks the lines, as MIME does.
        return base64.b64decode(value.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("Input should be base64") from None


@dataclass(frozen=True, slots=True)
class Scalar:
    """What one MLflow type is in Python, Arrow and JSON Schema."""

    told: str
    python: Any
    arrow: pa.DataType
    schema: dict[str, Any]
    bounds: Mapping[str, str]
    convert: Callable[[str], Any] | None = None
    nullable: bool = True

    @property
    def is_object(self) -> bool:
        """Whether a DataFrame has a column of Python objects for it, at least where some are missing."""
        return self.arrow in (pa.string(), pa.binary(), pa.bool_())

    @property
    def keywords(self) -> frozenset[str]:
        """The words of JSON Schema that say something about its values."""
        return frozenset({*self.bounds, *ANNOTATIONS, *(() if self.convert else ("enum",))})

    def json_schema(self, facets: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON Schema of one value that has these facets."""
        words = self._limited(facets)
        # One bound a side is enough to be told.
        if words.get("exclusiveMinimum", -math.inf) >= words.get("minimum", math.inf):
            del words["minimum"]
        if words.get("exclusiveMaximum", math.inf) <= words.get("maximum", -math.inf):
            del words["maximum"]
        return words

    def annotation(self, facets: Mapping[str, Any]) -> Any:
        """The strict type of one value for pydantic."""
        from pydantic import AfterValidator, BeforeValidator, Field

        words = self._limited(facets)
        limits = {keyword: words[word] for word, keyword in self.bounds.items() if word in words}
        if self.python is int:
            limits = {keyword: int(limit) for keyword, limit in limits.items()}
        if self.python is float:
            limits["allow_inf_nan"] = False
        before = [BeforeValidator(coerce_integral)] if self.python is int else []
        extra: list[Any] = [AfterValidator(self.convert)] if self.convert else []
        if "enum" in words:
            extra.append(AfterValidator(_one_of(words["enum"])))
        python: Any = self.python
        return Annotated[(python, *before, Field(strict=True, **limits), *extra)]

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Values that fit, or None where there is none, in Arrow."""
        return pa.array(values, self.arrow)

    def _limited(self, facets: Mapping[str, Any]) -> dict[str, Any]:
        width = self.schema
        words = width | dict(facets)
        # No word of the metadata makes room for what the width can't hold.
        if "minimum" in words:
            words["minimum"] = max(words["minimum"], width.get("minimum", -math.inf))
        if "maximum" in words:
            words["maximum"] = min(words["maximum"], width.get("maximum", math.inf))
        return words


def coerce_integral(value: Any) -> Any:
    """A whole number as such, however it is written: to JSON Schema `1.0` is an integer.

    JSON's readers make a float of an integer beyond 64 bits, which may have come to be within them.
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


def _integer(told: str, bits: int, arrow: pa.DataType) -> Scalar:
    schema = {
        "type": "integer",
        "format": f"int{bits}",
        "minimum": -(2 ** (bits - 1)),
        "maximum": 2 ** (bits - 1) - 1,
    }
    # pyfunc refuses a null in an integer column, even in an optional one: such a column is left out whole.
    return Scalar(told, int, arrow, schema, BOUNDS, nullable=False)


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
SCALARS: Mapping[str, Scalar] = {scalar.told: scalar for scalar in _ALL}
"""By the names that MLflow has for them."""
