"""Converts the JSON Schema of a model's type hint to a part of other documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 12


def item_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of one item of a list, without references.

    Args:
        schema: The JSON Schema of the type hint of a list. The model process sends it, so it is not trusted.
    """
    definitions = schema.get("$defs")
    item = _inline_refs(
        schema.get("items"), definitions if isinstance(definitions, Mapping) else {}, _MAX_DEPTH
    )
    return item if isinstance(item, dict) else {}


def _inline_refs(schema: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    if isinstance(schema, Mapping):
        if depth == 0:  # a recursive type
            return {}
        if "$ref" in schema:
            return _inline_refs(
                definitions.get(str(schema["$ref"]).rpartition("/")[2]), definitions, depth - 1
            )
        return {key: _inline_refs(value, definitions, depth - 1) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inline_refs(item, definitions, depth - 1) for item in schema] if depth else []
    return schema
