"""The JSON Schema of a model's type hint, as a part of other documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 12


def item_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of one item of a list, without references.

    Args:
        schema: what pydantic makes of the hint of a list; the model process is not trusted to have sent that.
    """
    definitions = schema.get("$defs")
    item = _inlined(schema.get("items"), definitions if isinstance(definitions, Mapping) else {}, _MAX_DEPTH)
    return item if isinstance(item, dict) else {}


def _inlined(schema: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    if isinstance(schema, Mapping):
        if depth == 0:  # a type that holds itself
            return {}
        if "$ref" in schema:
            return _inlined(definitions.get(str(schema["$ref"]).rpartition("/")[2]), definitions, depth - 1)
        return {key: _inlined(value, definitions, depth - 1) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(each, definitions, depth - 1) for each in schema] if depth else []
    return schema
