"""A column of a model signature, and the strict type of its values in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from serving.errors import UnsupportedSignature
from serving.types.column_type import ColumnType, column_type
from serving.types.constraints import check_keyword
from serving.types.scalars import SCALARS, Scalar

UNNAMED = "input"
"""The name of an input that has none in the signature."""


@dataclass(frozen=True, slots=True)
class Column:
    """One named input: its type, whether it may be left out, and its facets in JSON Schema's words.

    The type is MLflow's name for a scalar, or the JSON in which MLflow writes any other. `label` is the
    column's label in the DataFrame where that is not its name: pandas numbers the columns of an array.
    """

    name: str
    type: str
    required: bool = True
    constraints: tuple[tuple[str, Any], ...] = ()
    label: int | None = None

    @property
    def kind(self) -> ColumnType:
        """What its values are in Python, Arrow and JSON Schema."""
        return column_type(self.type)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one value, null not counted."""
        return self.kind.json_schema(dict(self.constraints))

    @property
    def annotation(self) -> Any:
        """The type of one value for pydantic, or null where the column is optional and MLflow takes it."""
        from pydantic import BeforeValidator, WithJsonSchema

        checked = self.kind.annotation(dict(self.constraints))
        if self.required:
            return Annotated[checked, WithJsonSchema(self.schema)]
        if not self.kind.nullable:
            return Annotated[checked, BeforeValidator(_refuse_null), WithJsonSchema(self.schema)]
        return Annotated[checked | None, WithJsonSchema(_or_null(self.schema))]


def column(spec: Mapping[str, Any], facets: Mapping[str, Any], name: str = UNNAMED) -> Column:
    """Make a column of its entry in the signature and the metadata's words on it; `name` is for clients.

    Raises:
        Untypable: no typed endpoint can be made of the type, or a word is unknown or means nothing for it.
    """
    label = spec["name"] if isinstance(spec.get("name"), int) else None
    type = str(spec["type"])
    if type not in SCALARS:
        known = ("type", "items", "properties", "values", "tensor-spec")
        type = json.dumps({key: spec[key] for key in known if key in spec}, sort_keys=True)
    try:
        found = column_type(type)
    except UnsupportedSignature as error:
        raise UnsupportedSignature(
            f"the input {name!r} {error}: log a signature of {', '.join(SCALARS)}, {_MORE}"
        ) from None
    for word, value in facets.items():
        if word not in found.keywords:
            raise UnsupportedSignature(
                f"metadata serving.inputs.{name} has {word!r}, which says nothing about a {found.told}: "
                f"use {', '.join(sorted(found.keywords))}"
            )
        python = found.python if isinstance(found, Scalar) else str
        if wanted := check_keyword(word, value, python):
            raise UnsupportedSignature(
                f"metadata serving.inputs.{name}.{word} is {value!r:.100}: write {wanted}"
            )
    words = tuple(sorted(_hashable(facets).items()))
    return Column(name, type, bool(spec.get("required", True)), words, label)


_MORE = "of arrays, objects and maps of them, or of tensors of numbers, booleans or strings"


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise ValueError("MLflow takes no null in such a column: leave the field out")
    return value


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "type" not in schema:
        return schema
    nullable = schema | {"type": [schema["type"], "null"]}
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


def _hashable(facets: Mapping[str, Any]) -> dict[str, Any]:
    return {word: tuple(value) if isinstance(value, list) else value for word, value in facets.items()}
