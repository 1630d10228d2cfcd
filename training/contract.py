"""What a signature can't say about a model: its task, its classes, the limits of its inputs, its profile.

It travels in the metadata of the logged model, under `serving`, in the words of JSON Schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Words = Mapping[str, Any]

_Kinds = dict[str, tuple[type, ...]]
_NOTES: _Kinds = {
    "title": (str,),
    "description": (str,),
    "unit": (str,),
    "enum": (list, tuple),
    "examples": (list, tuple),
}
_TEXT: _Kinds = _NOTES | {"minLength": (int,), "maxLength": (int,), "pattern": (str,)}
_NUMBER: _Kinds = _NOTES | {
    "minimum": (int, float),
    "maximum": (int, float),
    "exclusiveMinimum": (int, float),
    "exclusiveMaximum": (int, float),
    "multipleOf": (int, float),
}
_WORDS: Mapping[str, _Kinds] = {
    "integer": _NUMBER,
    "long": _NUMBER,
    "float": _NUMBER,
    "double": _NUMBER,
    "string": _TEXT,
}


@dataclass(frozen=True, slots=True)
class Contract:
    """A model's task, the names of its classes, the words on its columns, and its reference profile.

    The task is `classification`, `regression`, or none where the answer is neither.
    """

    task: str | None
    classes: Sequence[str] | None = None
    inputs: Mapping[str, Words] = field(default_factory=dict)
    profile: Mapping[str, Any] | None = None

    def metadata(self) -> dict[str, Any]:
        """The `serving` entry of a model's metadata, in plain values; nothing that is empty."""
        said = {
            "task": self.task,
            "classes": self.classes,
            "inputs": self.inputs,
            "profile": self.profile,
        }
        filled = {name: value for name, value in said.items() if value}
        return {"serving": json.loads(json.dumps(filled, default=_plain))}

    def check(self, columns: Mapping[str, str]) -> None:
        """Hold the words against the signature's columns, given as name → MLflow type.

        Raises:
            ValueError: there is no such column, or a word or its value means nothing for its type.
        """
        for column, words in self.inputs.items():
            if column not in columns:
                raise ValueError(f"there is no column {column!r}: {_either(columns)}")
            for word, value in words.items():
                _check_word(column, columns[column], word, value)


def _check_word(column: str, kind: str, word: str, value: Any) -> None:
    known = _WORDS.get(kind, _NOTES)
    if word not in known:
        raise ValueError(f"{word!r} says nothing about {column!r}, a {kind}: {_either(known)}")
    if isinstance(value, bool) or not isinstance(_plain(value), known[word]):
        wanted = " or ".join(each.__name__ for each in known[word])
        raise ValueError(f"{word!r} of {column!r} is {value!r}, and should be of type {wanted}")


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's numbers and lists, which YAML and JSON can write."""
    return value.tolist() if hasattr(value, "tolist") else value


def _either(names: Iterable[str]) -> str:
    return f"use {', '.join(names)}"
