"""Nested column types: arrays, objects and maps. Their values are sent to model processes as JSON texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import orjson
import pyarrow as pa

from serving.promotion_errors import UnsupportedSignature
from serving.types.constraints import ANNOTATIONS
from serving.types.scalars import SCALARS, Scalar


def _json_type() -> Any:
    """Return Arrow's canonical extension type for JSON, or define it if pyarrow is older than 19.

    Both have the same name and storage type, so that processes with different versions of pyarrow can
    exchange values.
    """
    if hasattr(pa, "json_"):
        return pa.json_()

    class Json(pa.ExtensionType):  # type: ignore[misc]  # pyarrow has no type stubs
        def __init__(self) -> None:
            super().__init__(pa.string(), "arrow.json")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Any:
            return cls()

        def __hash__(self) -> int:
            return hash(self.extension_name)

    with suppress(KeyError):  # pyarrow 18 registers its own type but does not expose it in Python
        pa.unregister_extension_type("arrow.json")
    pa.register_extension_type(Json())
    return Json()


JSON = _json_type()
"""The Arrow type of nested values."""
NOT_FINITE = "NaN"
"""Represents a nested value that contains a number that is not finite, which JSON cannot represent."""


@dataclass(frozen=True, slots=True)
class Nested:
    """A nested type."""

    type: str
    """The JSON in which MLflow writes the type."""
    keywords = ANNOTATIONS
    nullable = True
    is_object = True

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return the parsed type."""
        spec: Mapping[str, Any] = json.loads(self.type)
        return spec

    @property
    def converts(self) -> bool:
        """Return whether the type contains bytes or datetimes."""
        return any(f'"{name}"' in self.type for name, scalar in SCALARS.items() if scalar.convert)

    @property
    def name(self) -> str:
        """Return a description such as "array of double"."""
        return _name(self.spec)

    @property
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one value."""
        return _schema(self.spec)

    def json_schema(self, constraints: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of one value with annotations."""
        return self.schema | dict(constraints)

    def annotation(self, constraints: Mapping[str, Any]) -> Any:
        """Return the strict pydantic type of one value; validation keeps the JSON value unchanged."""
        return _annotation(self.spec)

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Return the values as JSON texts."""
        texts = [None if value is None else orjson.dumps(value).decode() for value in values]
        return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def nested(spec: Mapping[str, Any]) -> Nested:
    """Return the nested type for an entry of the signature.

    Raises:
        UnsupportedSignature: It contains a type that cannot be served.
    """
    known = {key: value for key, value in spec.items() if key in ("type", "items", "properties", "values")}
    kind = Nested(json.dumps(known, sort_keys=True))
    kind.annotation({})  # raises if a part cannot be served
    return kind


def _name(spec: Mapping[str, Any]) -> str:
    match spec["type"]:
        case "array":
            return f"array of {_name(spec['items'])}"
        case "map":
            return f"map to {_name(spec['values'])}"
        case "object":
            return f"object of {', '.join(spec['properties'])}"
    return str(spec["type"])


def _schema(spec: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    schema: dict[str, Any]
    match spec["type"]:
        case "array":
            schema = {"type": "array", "items": _schema(spec["items"])}
        case "map":
            schema = {"type": "object", "additionalProperties": _schema(spec["values"])}
        case "object":
            properties = spec["properties"]
            schema = {
                "type": "object",
                "properties": {name: _schema(field, _required(field)) for name, field in properties.items()},
                "required": [name for name, field in properties.items() if _required(field)],
                "additionalProperties": False,
            }
        case "any":
            return {}
        case scalar:
            schema = dict(SCALARS[scalar].schema)
    return schema if required else schema | {"type": [schema["type"], "null"]}


def _annotation(spec: Mapping[str, Any]) -> Any:
    from pydantic import AfterValidator, Field

    inner: Any
    match spec["type"]:
        case "array":
            inner = _annotation(spec["items"])
            return Annotated[list[inner], Field(strict=True)]
        case "map":
            inner = _annotation(spec["values"])
            return Annotated[dict[str, inner], Field(strict=True)]
        case "object":
            return _object(spec["properties"])
        case "any":
            return Annotated[Any, AfterValidator(_check_portable)]
        case scalar if scalar in SCALARS:
            return _scalar(SCALARS[scalar])
    raise UnsupportedSignature(f"holds a {spec['type']}, from which no typed endpoint can be made")


def _object(properties: Mapping[str, Any]) -> Any:
    from pydantic import ConfigDict
    from typing_extensions import NotRequired, TypedDict

    type_dict: Any = TypedDict  # the fields are known only when a version is loaded
    fields = {
        name: _annotation(field) if _required(field) else NotRequired[_annotation(field) | None]
        for name, field in properties.items()
    }
    typed_dict = type_dict("Object", fields)
    typed_dict.__pydantic_config__ = ConfigDict(extra="forbid")
    return typed_dict


def _required(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("required", True))


def _scalar(scalar: Scalar) -> Any:
    """Return the pydantic type of a scalar in a nested value; validation keeps the JSON value unchanged."""
    from pydantic import AfterValidator, Field

    convert = scalar.convert
    if convert is None:
        return scalar.annotation({})

    def check(value: str) -> str:
        convert(value)
        return value

    return Annotated[str, Field(strict=True), AfterValidator(check)]


def _check_portable(value: Any) -> Any:
    """Return a value of any type; reject numbers that JSON parsers read differently."""
    if isinstance(value, list):
        return [_check_portable(item) for item in value]
    if isinstance(value, dict):
        return {name: _check_portable(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("Input should be an integer of 64 bits")
    return value


def to_python(array: pa.Array) -> list[Any]:
    """Return the values of an array as Python values; JSON texts are parsed, or NaN."""
    if array.type != JSON:
        values: list[Any] = array.to_pylist()
        return values
    return [*map(_read, array.storage.to_pylist())]


def _read(text: str | None) -> Any:
    if text is None:
        return None
    return math.nan if text == NOT_FINITE else orjson.loads(text)


def restore_types(value: Any, spec: Mapping[str, Any], date: Callable[[datetime], Any]) -> Any:
    """Return a nested JSON value in which bytes and datetimes are converted as its type declares.

    Args:
        value: The JSON value.
        spec: The type, as MLflow writes it.
        date: Converts a datetime.
    """
    if value is None:
        return None
    match spec["type"]:
        case "array":
            return [restore_types(item, spec["items"], date) for item in value]
        case "map":
            return {name: restore_types(item, spec["values"], date) for name, item in value.items()}
        case "object":
            return {name: restore_types(item, spec["properties"][name], date) for name, item in value.items()}
        case scalar if scalar in SCALARS and (convert := SCALARS[scalar].convert):
            converted = convert(value)
            return date(converted) if isinstance(converted, datetime) else converted
    return value
