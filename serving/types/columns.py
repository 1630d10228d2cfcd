"""The columns of a model signature, with the strict types of their JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from serving.promotion_errors import UnsupportedSignature
from serving.types.column_type import ColumnType, column_type
from serving.types.constraints import check_keyword
from serving.types.scalars import SCALARS, Scalar

UNNAMED = "input"
"""The name of an input that has no name in the signature."""


@dataclass(frozen=True, slots=True)
class Column:
    """One named input."""

    name: str
    type: str
    """MLflow's name of a scalar type, or the JSON in which MLflow writes other types."""
    required: bool = True
    """Whether the column must be present."""
    constraints: tuple[tuple[str, Any], ...] = ()
    """Keywords of JSON Schema and their values."""
    label: int | None = None
    """The label in the DataFrame if it is not the name: pandas numbers the columns of an array."""

    @property
    def kind(self) -> ColumnType:
        """Return the representation of its values in Python, Arrow and JSON Schema."""
        return column_type(self.type)

    @property
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one value, without null."""
        return self.kind.json_schema(dict(self.constraints))

    @property
    def annotation(self) -> Any:
        """Return the pydantic type of one value; it includes null if the column is optional and nullable."""
        from pydantic import BeforeValidator, WithJsonSchema

        value_type = self.kind.annotation(dict(self.constraints))
        if self.required:
            return Annotated[value_type, WithJsonSchema(self.schema)]
        if not self.kind.nullable:
            return Annotated[value_type, BeforeValidator(_refuse_null), WithJsonSchema(self.schema)]
        return Annotated[value_type | None, WithJsonSchema(_or_null(self.schema))]


def column(spec: Mapping[str, Any], constraints: Mapping[str, Any], name: str = UNNAMED) -> Column:
    """Return the column for an entry of the signature.

    Args:
        spec: The entry of the signature.
        constraints: The keywords for this column in the model's metadata.
        name: The name of the column for clients.

    Raises:
        UnsupportedSignature: The type cannot be served, or a keyword is unknown, invalid or not applicable.
    """
    label = spec["name"] if isinstance(spec.get("name"), int) else None
    type = str(spec["type"])
    if type not in SCALARS:
        known = ("type", "items", "properties", "values", "tensor-spec")
        type = json.dumps({key: spec[key] for key in known if key in spec}, sort_keys=True)
    try:
        kind = column_type(type)
    except UnsupportedSignature as error:
        raise UnsupportedSignature(
            f"the input {name!r} {error}: log a signature of {', '.join(SCALARS)}, {_OTHER_TYPES}"
        ) from None
    for keyword, value in constraints.items():
        if keyword not in kind.keywords:
            raise UnsupportedSignature(
                f"metadata serving.inputs.{name} has {keyword!r}, which does not apply to a {kind.name}: "
                f"use {', '.join(sorted(kind.keywords))}"
            )
        python = kind.python if isinstance(kind, Scalar) else str
        if expected := check_keyword(keyword, value, python):
            raise UnsupportedSignature(
                f"metadata serving.inputs.{name}.{keyword} is {value!r:.100}: write {expected}"
            )
    keywords = tuple(sorted(_hashable(constraints).items()))
    return Column(name, type, bool(spec.get("required", True)), keywords, label)


_OTHER_TYPES = "of arrays, objects and maps of them, or of tensors of numbers, booleans or strings"


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise ValueError("MLflow accepts no null in a column of this type: omit the field")
    return value


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "type" not in schema:
        return schema
    nullable = schema | {"type": [schema["type"], "null"]}
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


def _hashable(constraints: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in constraints.items()}
