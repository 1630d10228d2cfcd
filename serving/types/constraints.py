"""Checks the JSON Schema keywords with which a model's metadata constrains and describes columns.

People write the metadata by hand. A mistake would otherwise affect clients: a bound that is not a number
rejects all requests, or cannot be shown in the documentation.
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


def check_keyword(keyword: str, value: Any, python: type) -> str | None:
    """Check the value of a keyword for a column of type `python`.

    Returns:
        A description of the expected value if the value is invalid, otherwise None.
    """
    if keyword == "enum":
        is_list = isinstance(value, (list, tuple)) and value
        is_valid = is_list and all(_is(item, python) for item in value)
        return None if is_valid else f"a list of {_NAMES[python]}s"
    if keyword == "examples":
        return None if isinstance(value, (list, tuple)) and _is_json(value) else "a list of JSON values"
    if keyword == "pattern":
        return None if _is_pattern(value) else "a regular expression without look-around"
    if keyword in LENGTHS:
        return None if _is(value, int) and 0 <= value <= sys.maxsize else "a whole number of at least 0"
    if keyword in BOUNDS:
        is_valid = _is(value, python) and (value > 0 or keyword != "multipleOf")
        return None if is_valid else f"a {_NAMES[python]}{' above 0' if keyword == 'multipleOf' else ''}"
    return None if isinstance(value, str) else "a string"


_NAMES = {bool: "boolean", int: "whole number", float: "finite number", str: "string"}


def _is(value: Any, python: type) -> bool:
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        return False
    # As in JSON Schema, 1.0 is a whole number and `true` is not a number.
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
