"""Values nested in one another: arrays, objects and maps. They travel as JSON texts."""

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

from serving.errors import UnsupportedSignature
from serving.types.constraints import ANNOTATIONS
from serving.types.scalars import SCALARS, Scalar


def _json_type() -> Any:
    """Return Arrow's canonical extension type for JSON, or define it where pyarrow is older than 19.

    Both have one name and one storage type, so that a process with either reads what the other has written.
    """
    if hasattr(pa, "json_"):
        return pa.json_()

    class Json(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.string(), "arrow.json")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Any:
            return cls()

        def __hash__(self) -> int:
            return hash(self.extension_name)

    with suppress(KeyError):  # pyarrow 18 has it, and no name for it in Python
        pa.unregister_extension_type("arrow.json")
    pa.register_extension_type(Json())
    return Json()


JSON = _json_type()
"""The Arrow type of nested values."""
NOT_FINITE = "NaN"
"""Stands for a nested value in which a number is not finite, which JSON can't say."""


@dataclass(frozen=True, slots=True)
class Nested:
    """Values nested in one another, by the JSON in which MLflow writes their type."""

    type: str
    keywords = ANNOTATIONS
    nullable = True
    is_object = True

    @property
    def spec(self) -> Mapping[str, Any]:
        """Their type as MLflow writes it."""
        found: Mapping[str, Any] = json.loads(self.type)
        return found

    @property
    def converts(self) -> bool:
        """Whether there are bytes or datetimes in them."""
        return any(f'"{name}"' in self.type for name, scalar in SCALARS.items() if scalar.convert)

    @property
    def told(self) -> str:
        """What is nested in what."""
        return _told(self.spec)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one value."""
        return _schema(self.spec)

    def json_schema(self, facets: Mapping[str, Any]) -> dict[str, Any]:
        """Its schema, and notes on it."""
        return self.schema | dict(facets)

    def annotation(self, facets: Mapping[str, Any]) -> Any:
        """The strict type of one value, which stays as JSON has it."""
        return _annotation(self.spec)

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Each value as a JSON text."""
        texts = [None if value is None else orjson.dumps(value).decode() for value in values]
        return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def nested(spec: Mapping[str, Any]) -> Nested:
    """Nested values from their entry in the signature.

    Raises:
        Untypable: something in it is of no type that can be served.
    """
    plain = {key: value for key, value in spec.items() if key in ("type", "items", "properties", "values")}
    found = Nested(json.dumps(plain, sort_keys=True))
    found.annotation({})  # which reads all of it
    return found


def _told(spec: Mapping[str, Any]) -> str:
    match spec["type"]:
        case "array":
            return f"array of {_told(spec['items'])}"
        case "map":
            return f"map to {_told(spec['values'])}"
        case "object":
            return f"object of {', '.join(spec['properties'])}"
    return str(spec["type"])


def _schema(spec: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    found: dict[str, Any]
    match spec["type"]:
        case "array":
            found = {"type": "array", "items": _schema(spec["items"])}
        case "map":
            found = {"type": "object", "additionalProperties": _schema(spec["values"])}
        case "object":
            properties = spec["properties"]
            found = {
                "type": "object",
                "properties": {name: _schema(each, _required(each)) for name, each in properties.items()},
                "required": [name for name, each in properties.items() if _required(each)],
                "additionalProperties": False,
            }
        case "any":
            return {}
        case scalar:
            found = dict(SCALARS[scalar].schema)
    return found if required else found | {"type": [found["type"], "null"]}


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
            return Annotated[Any, AfterValidator(_plain)]
        case scalar if scalar in SCALARS:
            return _scalar(SCALARS[scalar])
    raise UnsupportedSignature(f"holds a {spec['type']}, from which no typed endpoint can be made")


def _object(properties: Mapping[str, Any]) -> Any:
    from pydantic import ConfigDict
    from typing_extensions import NotRequired, TypedDict

    type_dict: Any = TypedDict  # its fields are known only when a version is loaded
    fields = {
        name: _annotation(each) if _required(each) else NotRequired[_annotation(each) | None]
        for name, each in properties.items()
    }
    made = type_dict("Object", fields)
    made.__pydantic_config__ = ConfigDict(extra="forbid")
    return made


def _required(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("required", True))


def _scalar(scalar: Scalar) -> Any:
    """The type of a scalar in a nested value: it is checked, and stays as JSON has it."""
    from pydantic import AfterValidator, Field

    convert = scalar.convert
    if convert is None:
        return scalar.annotation({})

    def check(value: str) -> str:
        convert(value)
        return value

    return Annotated[str, Field(strict=True), AfterValidator(check)]


def _plain(value: Any) -> Any:
    """A value of any type, if other readers of JSON read it alike."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("Input should be an integer of 64 bits")
    return value


def to_python(array: pa.Array) -> list[Any]:
    """An array's values in Python; those of JSON texts are what JSON has, or NaN."""
    if array.type != JSON:
        values: list[Any] = array.to_pylist()
        return values
    return [*map(_read, array.storage.to_pylist())]


def _read(text: str | None) -> Any:
    if text is None:
        return None
    return math.nan if text == NOT_FINITE else orjson.loads(text)


def restore_types(value: Any, spec: Mapping[str, Any], date: Callable[[datetime], Any]) -> Any:
    """What JSON has of a nested value with the bytes and datetimes in it that its type says."""
    if value is None:
        return None
    match spec["type"]:
        case "array":
            return [restore_types(each, spec["items"], date) for each in value]
        case "map":
            return {name: restore_types(each, spec["values"], date) for name, each in value.items()}
        case "object":
            return {name: restore_types(each, spec["properties"][name], date) for name, each in value.items()}
        case scalar if scalar in SCALARS and (convert := SCALARS[scalar].convert):
            found = convert(value)
            return date(found) if isinstance(found, datetime) else found
    return value
