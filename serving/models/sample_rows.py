"""Generate rows from a contract: from its types, bounds and profile, and from an example row if there is one.

The rows supplement an example that is too small. A model may fail on such a row without being faulty.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from serving.contract.contract import Contract, Row
from serving.contract.reference_profile import Distribution
from serving.errors import RequestError
from serving.types.columns import Column
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor

_DAY = datetime(2026, 1, 1)  # noqa: DTZ001  # MLflow's datetimes have no zone


def sample_rows(contract: Contract, count: int, like: Mapping[str, Any] | None = None) -> list[Row]:
    """Return up to `count` distinct rows that fit the contract.

    With an example row `like` (in JSON types), the rows have its columns and similar values. Without it, they
    have all required columns.
    """
    rows: list[Row] = []
    for number in range(count):
        example = like or {}
        row = {
            # The offset varies by column: two columns may be the lower and upper end of a range.
            column.name: _value(contract, column, number + (0 if like else offset), example.get(column.name))
            for offset, column in enumerate(contract.columns)
            if (column.name in example if like else column.required)
        }
        with suppress(RequestError, TypeError, ValueError):
            rows.append(contract.read_row(json.dumps(row).encode()))
    return rows


def _value(contract: Contract, column: Column, number: int, example: Any) -> Any:
    constraints = dict(column.constraints)
    for keyword in ("enum", "examples"):
        if constraints.get(keyword):
            return constraints[keyword][number % len(constraints[keyword])]
    profile = contract.profile.inputs.get(column.name) if contract.profile else None
    if profile and (values := _profile_values(profile)):
        value = values[number % len(values)]
        is_whole = isinstance(column.kind, Scalar) and column.kind.python is int
        return round(value) if is_whole and isinstance(value, float) else value
    if isinstance(column.kind, Scalar):
        return _scalar(column.kind, constraints, number, example)
    if example is not None:
        return example
    if isinstance(column.kind, Tensor):
        return _tensor(column.kind, number)
    return _nested(json.loads(column.type), number)


def _profile_values(profile: Distribution) -> Sequence[Any]:
    if profile.categories is not None:
        return profile.categories
    edges = profile.edges or ()
    return [(low + high) / 2 for low, high in pairwise(edges)] or edges


def _scalar(kind: Scalar, constraints: Mapping[str, Any], number: int, example: Any) -> Any:
    if kind.python is bool:
        return bool(number % 2) if example is None else bool(example) ^ bool(number % 2)
    if kind.python in (int, float):
        return _number(kind, constraints, number, example)
    if example is not None:
        return example
    if kind.name == "datetime":
        return (_DAY + timedelta(days=number)).isoformat()
    text = chr(ord("a") + number % 26) * max(1, constraints.get("minLength", 1))
    return base64.b64encode(text.encode()).decode() if kind.name == "binary" else text


def _number(kind: Scalar, constraints: Mapping[str, Any], number: int, example: Any) -> Any:
    low = max(constraints.get("minimum", -math.inf), constraints.get("exclusiveMinimum", -math.inf))
    high = min(constraints.get("maximum", math.inf), constraints.get("exclusiveMaximum", math.inf))
    value = 1.0 + number if example is None else example * (1 + number / 8) + number / 8
    if math.isfinite(low) and math.isfinite(high):
        value = low + (high - low) * (number % 7 + 1) / 8
    elif not low < value < high:
        value = low + 1 + number if math.isfinite(low) else high - 1 - number
    if step := constraints.get("multipleOf"):
        value = round(value / step) * step
    return round(value) if kind.python is int else value


def _tensor(kind: Tensor, number: int) -> Any:
    value: Any = f"{number}" if kind.dtype in ("str", "object") else number % 2 + 1
    if kind.dtype == "bool":
        value = bool(number % 2)
    for size in reversed(kind.shape):
        value = [value] * max(size, 1)
    return value


def _nested(spec: Mapping[str, Any], number: int) -> Any:
    match spec["type"]:
        case "array":
            return [_nested(spec["items"], number)]
        case "map":
            return {"a": _nested(spec["values"], number)}
        case "object":
            properties = spec["properties"].items()
            return {name: _nested(item, number) for name, item in properties if item.get("required", True)}
        case "boolean":
            return bool(number % 2)
        case "integer" | "long":
            return number + 1
        case "float" | "double":
            return 1.0 + number
        case "datetime":
            return (_DAY + timedelta(days=number)).isoformat()
        case "binary":
            return base64.b64encode(b"a").decode()
    return chr(ord("a") + number % 26)
