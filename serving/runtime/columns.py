"""A column of a model signature, and the strict type of its values in JSON.

The types are MLflow's. What they take is narrower than what `json` or pandas would coerce: `true` is no
number, `1.9` no integer, NaN and infinity are refused, integers have the range of their width, a datetime
with a zone becomes UTC. A JSON integer is a fine double. The facets are JSON Schema's validation words.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AfterValidator, Field, WithJsonSchema

from serving.errors import Untypable
from serving.runtime.facets import BOUNDS, LENGTHS, NOTES, correction

FLOAT32_MAX = 3.4028234663852886e38
# pandas keeps nanoseconds in 64 bits, which ends within these years.
_YEARS = range(1678, 2262)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _datetime(value: str) -> datetime:
    try:
        if not _ISO_DATE.match(value):
            raise ValueError
        found = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("Input should be an ISO 8601 date or datetime") from None
    if found.year not in _YEARS:
        raise ValueError(f"Input should be between the years {_YEARS[0]} and {_YEARS[-1]}")
    return found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)


def _bytes(value: str) -> bytes:
    try:
        # MLflow's own encoder breaks the lines, as MIME does.
        return base64.b64decode(value.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("Input should be base64") from None


@dataclass(frozen=True, slots=True)
class Scalar:
    """What one MLflow type is in Python, Arrow and JSON Schema."""

    python: Any
    arrow: pa.DataType
    schema: dict[str, Any]
    words: Mapping[str, str]
    convert: Callable[[str], Any] | None = None
    nullable: bool = True


def _integer(bits: int, arrow: pa.DataType) -> Scalar:
    schema = {
        "type": "integer",
        "format": f"int{bits}",
        "minimum": -(2 ** (bits - 1)),
        "maximum": 2 ** (bits - 1) - 1,
    }
    # pyfunc refuses a null in an integer column, even in an optional one: such a column is left out whole.
    return Scalar(int, arrow, schema, BOUNDS, nullable=False)


_FLOAT = {"type": "number", "format": "float", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
_ISO = {"type": "string", "format": "date-time"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
SCALARS: Mapping[str, Scalar] = {
    "boolean": Scalar(bool, pa.bool_(), {"type": "boolean"}, {}),
    "integer": _integer(32, pa.int32()),
    "long": _integer(64, pa.int64()),
    "float": Scalar(float, pa.float32(), _FLOAT, BOUNDS),
    "double": Scalar(float, pa.float64(), {"type": "number", "format": "double"}, BOUNDS),
    "string": Scalar(str, pa.string(), {"type": "string"}, LENGTHS),
    "binary": Scalar(str, pa.binary(), _BASE64, {}, _bytes),
    "datetime": Scalar(str, pa.timestamp("ns"), _ISO, {}, _datetime),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One named input: its MLflow type, whether it may be left out, and its facets in JSON Schema's words."""

    name: str
    type: str
    required: bool = True
    facets: tuple[tuple[str, Any], ...] = ()

    @property
    def scalar(self) -> Scalar:
        """What the column's type is in Python, Arrow and JSON Schema."""
        return SCALARS[self.type]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one value, null not counted."""
        words = self._words
        # One bound a side is enough to be told.
        if words.get("exclusiveMinimum", -math.inf) >= words.get("minimum", math.inf):
            del words["minimum"]
        if words.get("exclusiveMaximum", math.inf) <= words.get("maximum", -math.inf):
            del words["maximum"]
        return words

    @property
    def _words(self) -> dict[str, Any]:
        facets, width = dict(self.facets), self.scalar.schema
        words = width | facets
        # No word of the metadata makes room for what the width can't hold.
        if "minimum" in words:
            words["minimum"] = max(words["minimum"], width.get("minimum", -math.inf))
        if "maximum" in words:
            words["maximum"] = min(words["maximum"], width.get("maximum", math.inf))
        return words

    @property
    def annotation(self) -> Any:
        """The type of one value for pydantic, null counted in where the column is optional."""
        words = self._words
        limits = {keyword: words[word] for word, keyword in self.scalar.words.items() if word in words}
        if self.scalar.python is int:
            limits = {keyword: int(limit) for keyword, limit in limits.items()}
        if self.scalar.python is float:
            limits["allow_inf_nan"] = False
        extra: list[Any] = [AfterValidator(self.scalar.convert)] if self.scalar.convert else []
        if "enum" in words:
            extra.append(AfterValidator(_one_of(words["enum"])))
        python: Any = self.scalar.python
        checked: Any = Annotated[python, Field(strict=True, **limits), *extra]
        if self.required:
            return Annotated[checked, WithJsonSchema(self.schema)]
        return Annotated[checked | None, WithJsonSchema(_or_null(self.schema))]


def column(spec: Mapping[str, Any], facets: Mapping[str, Any]) -> Column:
    """A column from its entry in the signature and the metadata's words on it.

    Raises:
        Untypable: the type is not a scalar, or a word is unknown or means nothing for the type.
    """
    name, kind = spec["name"], str(spec["type"])
    if kind not in SCALARS:
        raise Untypable(
            f"the input {name!r} is of type {kind}, from which no typed endpoint can be made yet: "
            f"log a signature whose columns are {', '.join(SCALARS)}"
        )
    scalar = SCALARS[kind]
    known = {*scalar.words, *NOTES} | (set() if scalar.convert else {"enum"})
    for word, value in facets.items():
        if word not in known:
            raise Untypable(
                f"metadata serving.inputs.{name} has {word!r}, which says nothing about a {kind}: "
                f"use {', '.join(sorted(known))}"
            )
        if wanted := correction(word, value, scalar.python):
            raise Untypable(f"metadata serving.inputs.{name}.{word} is {value!r:.100}: write {wanted}")
    return Column(name, kind, bool(spec.get("required", True)), tuple(sorted(_hashable(facets).items())))


def _one_of(values: tuple[Any, ...]) -> Callable[[Any], Any]:
    listed = ", ".join(repr(value) for value in values[:20])

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"Input should be one of {listed}")
        return value

    return check


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    nullable = schema | {"type": [schema["type"], "null"]}
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


def _hashable(facets: Mapping[str, Any]) -> dict[str, Any]:
    return {word: tuple(value) if isinstance(value, list) else value for word, value in facets.items()}
