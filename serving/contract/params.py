"""The parameters of a model signature: their types, and their values in query strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from serving.types.columns import Column
from serving.types.scalars import SCALARS


@dataclass(frozen=True, slots=True)
class Param:
    """One model parameter. `type` is its MLflow type."""

    name: str
    type: str
    default: Any
    is_list: bool

    @property
    def annotation(self) -> Any:
        """Return the strict pydantic type of its value."""
        value: Any = Column(self.name, self.type).annotation
        value = list[value] if self.is_list else value
        return value if self.default is not None else value | None

    @property
    def is_nested(self) -> bool:
        """Return whether it is an object, a map or an array of these."""
        return self.type not in SCALARS

    def read(self, texts: Sequence[str]) -> Any:
        """Return its value from a query string: lists repeat the parameter, all but strings are JSON."""
        is_text = not self.is_nested and SCALARS[self.type].python is str
        values = [text if is_text else _json_or_text(text) for text in texts]
        return values if self.is_list or len(values) != 1 else values[0]


def _json_or_text(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return text
