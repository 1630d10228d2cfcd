"""What a model's metadata says of a column, in JSON Schema's words, and whether it says anything.

The metadata is written by hand, and a mistake in it would otherwise be seen by clients: a bound that is no
number lets nothing through, or can't be shown in the documentation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

BOUNDS: Mapping[str, str] = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
LENGTHS: Mapping[str, str] = {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"}
ANNOTATIONS = frozenset({"title", "description", "unit", "examples"})
_TYPES: Mapping[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


def check_keyword(word: str, value: Any, python: type) -> str | None:
    """What should stand as the value of a word on a column of type `python`; None where it is fine."""
    if word == "enum":
        listed = isinstance(value, (list, tuple)) and value
        return None if listed and all(_is(each, python) for each in value) else f"a list of {_NAMES[python]}s"
    if word == "examples":
        return None if isinstance(value, (list, tuple)) and _is_json(value) else "a list of JSON values"
    if word == "pattern":
        return None if _is_pattern(value) else "a regular expression, without look-around"
    if word in LENGTHS:
        return None if _is(value, int) and 0 <= value <= sys.maxsize else "a whole number from 0 on"
    if word in BOUNDS:
        fine = _is(value, python) and (value > 0 or word != "multipleOf")
        return None if fine else f"a {_NAMES[python]}{' above 0' if word == 'multipleOf' else ''}"
    return None if isinstance(value, str) else "a text"


_NAMES = {bool: "boolean", int: "whole number", float: "finite number", str: "text"}


def _is(value: Any, python: type) -> bool:
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        return False
    # As in JSON Schema, 1.0 is a whole number, and `true` is none.
    return type(value) in _TYPES[python] or (python is int and type(value) is float and value.is_integer())


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _is_pattern(value: Any) -> bool:
    from pydantic import Field, TypeAdapter
    from pydantic_core import SchemaError

    try:
        TypeAdapter(Annotated[str, Field(pattern=value)])
    except SchemaError:
        return False
    return isinstance(value, str)
