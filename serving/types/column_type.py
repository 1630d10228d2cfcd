"""What a column of a model signature holds: a scalar, a tensor, or values nested in one another.

The kind of a column is told by its type: a scalar's name, or the JSON in which MLflow writes other types.
"""

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
    """What the values of a column are in Python, Arrow and JSON Schema."""

    @property
    def told(self) -> str:
        """Its name for people."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON Schema of one value."""

    @property
    def nullable(self) -> bool:
        """Whether pyfunc takes a null in an optional column of it."""

    @property
    def is_object(self) -> bool:
        """Whether a DataFrame has a column of Python objects for it, at least where some are missing."""

    @property
    def keywords(self) -> frozenset[str]:
        """The words of JSON Schema that say something about its values."""

    def json_schema(self, facets: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON Schema of one value that has these facets."""

    def annotation(self, facets: Mapping[str, Any]) -> Any:
        """The strict type of one value for pydantic."""

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Values that fit, or None where there is none, in Arrow."""


@lru_cache(maxsize=1024)
def column_type(type: str) -> ColumnType:
    """The kind of a column from its type: a scalar's name, or MLflow's JSON of another type.

    Raises:
        Untypable: it is of no type that can be served.
    """
    if type in SCALARS:
        return SCALARS[type]
    spec = json.loads(type)
    return tensor(spec["tensor-spec"]) if spec["type"] == "tensor" else nested(spec)
