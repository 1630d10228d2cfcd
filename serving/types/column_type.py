"""The interface of the column types of a model signature: scalars, tensors and nested values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import pyarrow as pa

from serving.types.nested import nested
from serving.types.scalars import SCALARS
from serving.types.tensors import tensor


class ColumnType(Protocol):
    """The representation of a column's values in Python, Arrow and JSON Schema."""

    @property
    def name(self) -> str:
        """Return the name of the type for people."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """Return the JSON Schema of one value."""

    @property
    def nullable(self) -> bool:
        """Return whether pyfunc accepts nulls in an optional column of this type."""

    @property
    def is_object(self) -> bool:
        """Return whether a DataFrame column has dtype object, at least if values are missing."""

    @property
    def keywords(self) -> frozenset[str]:
        """Return the keywords of JSON Schema that apply to its values."""

    def json_schema(self, constraints: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of one value with these constraints."""

    def annotation(self, constraints: Mapping[str, Any]) -> Any:
        """Return the strict pydantic type of one value with these constraints."""

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Return valid values, or None for missing ones, as an Arrow array."""


@lru_cache(maxsize=1024)
def column_type(type: str) -> ColumnType:
    """Return the column type for a scalar's name, or for the JSON in which MLflow writes other types.

    Raises:
        UnsupportedSignature: The type cannot be served.
    """
    if type in SCALARS:
        return SCALARS[type]
    spec = json.loads(type)
    return tensor(spec["tensor-spec"]) if spec["type"] == "tensor" else nested(spec)
