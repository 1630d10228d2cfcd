"""Contracts from an MLflow signature and metadata, as those of logged models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from serving.contract import mlmodel
from serving.contract.contract import Contract

TYPES = ("boolean", "integer", "long", "float", "double", "string", "binary", "datetime")
MAX_ROWS = 100


def columns(spec: str) -> list[ColSpec | TensorSpec]:
    """Return signature columns from a text such as `"age: long, name: string?"`; `?` is optional."""
    pairs = (part.strip().split(": ") for part in spec.split(",") if part)
    return [ColSpec(kind.rstrip("?"), name, not kind.endswith("?")) for name, kind in pairs]


def contract(
    inputs: str | ModelSignature,
    words: Mapping[str, Any] | None = None,
    *,
    outputs: Schema | None = None,
    params: list[ParamSpec] | None = None,
    name: str = "iris",
    **serving: Any,
) -> Contract:
    """Return a contract of these columns with metadata about them."""
    signature = inputs
    if isinstance(signature, str):
        schema: Any = ParamSchema(params) if params else None
        signature = ModelSignature(Schema(columns(signature)), outputs or Schema([ColSpec("double")]), schema)
    metadata = {"serving": serving | ({"inputs": words} if words else {})}
    described = {"signature": signature.to_dict(), "metadata": metadata}
    return mlmodel.contract(described, name, MAX_ROWS)
