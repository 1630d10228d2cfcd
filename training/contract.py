"""Contract of a model beyond its signature: task, classes, constraints of the inputs, reference profile.

It is stored in the metadata of the logged model under `serving`, with JSON Schema keywords.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ColumnKeywords = Mapping[str, Any]

_ValueTypes = dict[str, tuple[type, ...]]
_ANNOTATIONS: _ValueTypes = {
    "title": (str,),
    "description": (str,),
    "unit": (str,),
    "enum": (list, tuple),
    "examples": (list, tuple),
}
_STRING: _ValueTypes = _ANNOTATIONS | {"minLength": (int,), "maxLength": (int,), "pattern": (str,)}
_NUMERIC: _ValueTypes = _ANNOTATIONS | {
    "minimum": (int, float),
    "maximum": (int, float),
    "exclusiveMinimum": (int, float),
    "exclusiveMaximum": (int, float),
    "multipleOf": (int, float),
}
_KEYWORDS: Mapping[str, _ValueTypes] = {
    "integer": _NUMERIC,
    "long": _NUMERIC,
    "float": _NUMERIC,
    "double": _NUMERIC,
    "string": _STRING,
}


@dataclass(frozen=True, slots=True)
class Contract:
    """Task, class names, keywords of the columns, and reference profile of a model.

    The task is `classification`, `regression`, or None for any other output.
    """

    task: str | None
    classes: Sequence[str] | None = None
    inputs: Mapping[str, ColumnKeywords] = field(default_factory=dict)
    profile: Mapping[str, Any] | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the `serving` entry of the model's metadata, in built-in types and without empty values."""
        fields = {
            "task": self.task,
            "classes": self.classes,
            "inputs": self.inputs,
            "profile": self.profile,
        }
        non_empty = {name: value for name, value in fields.items() if value}
        return {"serving": json.loads(json.dumps(non_empty, default=_to_builtin))}

    def check(self, columns: Mapping[str, str]) -> None:
        """Check the keywords against the signature's columns, a mapping from name to MLflow type.

        Raises:
            ValueError: A column does not exist, or a keyword or its value does not apply to the column's
                type.
        """
        for column, keywords in self.inputs.items():
            if column not in columns:
                raise ValueError(f"there is no column {column!r}: {_use_one_of(columns)}")
            for keyword, value in keywords.items():
                _check_keyword(column, columns[column], keyword, value)


def _check_keyword(column: str, mlflow_type: str, keyword: str, value: Any) -> None:
    allowed = _KEYWORDS.get(mlflow_type, _ANNOTATIONS)
    if keyword not in allowed:
        raise ValueError(f"{keyword!r} does not apply to {column!r}, a {mlflow_type}: {_use_one_of(allowed)}")
    if isinstance(value, bool) or not isinstance(_to_builtin(value), allowed[keyword]):
        expected = " or ".join(value_type.__name__ for value_type in allowed[keyword])
        raise ValueError(f"{keyword!r} of {column!r} is {value!r}, but must be of type {expected}")


def _to_builtin(value: Any) -> Any:
    """Convert NumPy scalars and arrays to numbers and lists, which YAML and JSON support."""
    return value.tolist() if hasattr(value, "tolist") else value


def _use_one_of(names: Iterable[str]) -> str:
    return f"use {', '.join(names)}"
