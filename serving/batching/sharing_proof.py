"""Prove that requests of different callers may share a call of the model.

No signature declares that the rows of a table are independent of each other. Before a version goes live, rows
are therefore run alone and in several combinations. Later, `sharing_monitor.py` repeats a few live batches
request by request. The first difference ends sharing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa

from serving.codecs import model_output
from serving.codecs.model_output import OutputForm
from serving.errors import ModelFailed
from serving.text import shorten
from serving.types.nested import to_python

MAX_ROWS = 12
_MIN_ROWS = 2
_MAX_TAG_LENGTH, _MAX_REASON_LENGTH = 5000, 200
_MAX_REPEATED_ROWS = 64
_BUDGET_SECONDS = 4.0
"""Time limit of the proof; the indispensable calls are made even if it is exceeded."""
_TOLERANCE = {pa.float64(): 1e-9, pa.float32(): 1e-5, pa.float16(): 1e-2}
"""Accepted relative differences: BLAS sums in another order if the table has another shape."""

Call: TypeAlias = Callable[[pa.RecordBatch], Awaitable[pa.RecordBatch]]
"""Calls the model with one table and returns its output."""


class Basis(StrEnum):
    """The basis of a decision on sharing."""

    PROOF = "proof"
    MONITORING = "monitoring"
    METADATA = "metadata"
    FORM = "output form"


@dataclass(frozen=True, slots=True)
class Sharing:
    """A decision whether callers may share a call, with its basis and its reason in words."""

    allowed: bool
    basis: Basis
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the decision in the form of `/ready` and of the version's tag."""
        return {"shared": self.allowed, "basis": self.basis.value, "reason": self.reason}

    def tag(self) -> str:
        """Return the text of the version's tag, with a printable reason of bounded length."""
        reason = "".join(char if char.isprintable() else " " for char in self.reason)
        facts = self.as_json() | {"reason": shorten(reason, _MAX_REASON_LENGTH)}
        return json.dumps(facts, ensure_ascii=False)


TAG = "serving.batching"
"""The version's tag in which a front reports its decision, as JSON."""


def reported(tags: Mapping[str, str]) -> Sharing | None:
    """Return the decision from live requests that a front has written as a tag; None if there is none."""
    try:
        report = orjson.loads(tags.get(TAG, "{}")[:_MAX_TAG_LENGTH])
    except ValueError:
        return None
    if not isinstance(report, dict) or report.get("basis") != Basis.MONITORING:
        return None
    return Sharing(False, Basis.MONITORING, shorten(str(report.get("reason", "")), _MAX_REASON_LENGTH))


UNDECIDED = Sharing(False, Basis.PROOF, "it has not been proven yet")
HOW_TO_PROVE = (
    "log it with an input example of several rows, or set its metadata serving.batching to true if each "
    "prediction depends on its own row alone"
)


def overridden(batching: bool | None) -> Sharing | None:
    """Return the decision of the metadata `serving.batching`; None if it is absent."""
    if batching is None:
        return None
    return Sharing(batching, Basis.METADATA, f"its metadata serving.batching is {str(batching).lower()}")


async def prove(tables: Sequence[pa.RecordBatch], call: Call) -> Sharing:
    """Run rows alone, together, in other orders and repeated, and decide whether callers may share a call.

    Args:
        tables: rows to run, the most reliable first. Tables with another schema than the first are skipped.
        call: calls the model.

    Raises:
        ProcessDied: the model process died.
    """
    rows, alone, seconds = await _run_alone(_distinct(tables), call)
    if len(rows) < _MIN_ROWS:
        return Sharing(False, Basis.PROOF, f"fewer than {_MIN_ROWS} rows could be run: {HOW_TO_PROVE}")
    if not all(_is_single(output) for output in alone):
        return Sharing(False, Basis.PROOF, "it does not return one result per row")
    again = await call(rows.slice(0, 1))
    if differing_rows(alone[0], again):
        return Sharing(False, Basis.PROOF, "its prediction for the same row differs from call to call")
    for name, order in _combinations(len(rows), _BUDGET_SECONDS - seconds):
        try:
            output = await call(rows.take(pa.array(order)))
        except ModelFailed as error:
            return Sharing(False, Basis.PROOF, f"it fails on {name}, but not on the rows alone: {error}")
        if (
            model_output.is_reordered(output)
            or model_output.form(output) is OutputForm.WHOLE
            or len(output) != len(order)
        ):
            return Sharing(False, Basis.PROOF, f"it does not return one result per row for {name}")
        for place, row in enumerate(order):
            if differing_rows(alone[row], output.slice(place, 1)):
                return Sharing(
                    False, Basis.PROOF, f"a prediction depends on the other rows: it differs for {name}"
                )
    return Sharing(True, Basis.PROOF, f"the predictions for {len(rows)} rows are the same alone and together")


def _distinct(tables: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Return the distinct rows of the tables that have the columns of the first one, at most `MAX_ROWS`."""
    rows: dict[bytes, pa.RecordBatch] = {}
    for table in tables:
        if table.schema.equals(tables[0].schema):
            for index in range(min(len(table), MAX_ROWS)):
                row = table.slice(index, 1)
                rows.setdefault(row.serialize().to_pybytes(), row)
    return pa.concat_batches([*rows.values()][:MAX_ROWS]) if rows else None


async def _run_alone(
    rows: pa.RecordBatch | None, call: Call
) -> tuple[pa.RecordBatch, list[pa.RecordBatch], float]:
    """Run each row alone. Return the rows that the model accepts, their outputs, and the seconds in total."""
    accepted: list[int] = []
    outputs: list[pa.RecordBatch] = []
    started, longest = time.perf_counter(), 0.0
    if rows is None:
        return pa.record_batch([]), [], 0.0
    for index in range(len(rows)):
        elapsed = time.perf_counter() - started
        # Reserve the other half for the combinations: each takes at most about as long as three single calls.
        if len(accepted) >= _MIN_ROWS and elapsed + longest > _BUDGET_SECONDS / 2:
            break
        try:
            outputs.append(await call(rows.slice(index, 1)))
            accepted.append(index)
        except ModelFailed:
            pass  # the model may not support a generated row
        longest = max(longest, time.perf_counter() - started - elapsed)
    return rows.take(pa.array(accepted, pa.int64())), outputs, time.perf_counter() - started


def _combinations(rows: int, seconds: float) -> list[tuple[str, list[int]]]:
    """Return named orders in which to run the rows together; fewer if no time is left."""
    together = [*range(rows)]
    halves = together[rows // 2 :] + together[: rows // 2]
    repeated = [row for row in reversed(halves) for _ in range(2)]
    many = (together * _MAX_REPEATED_ROWS)[: max(_MAX_REPEATED_ROWS, rows)]
    combinations = [
        ("several rows at once", together),
        ("rows in another order", [*reversed(together)]),
        ("repeated rows", repeated),
        ("some of the rows", together[: (rows + 1) // 2] or together),
        ("one row repeated", [0] * rows),
        ("many rows", many),
    ]
    return combinations if seconds > 0 else combinations[:3]


def _is_single(output: pa.RecordBatch) -> bool:
    return model_output.form(output) is not OutputForm.WHOLE and len(output) == 1


def differing_rows(left: pa.RecordBatch, right: pa.RecordBatch) -> list[int]:
    """Return the rows in which two outputs differ by more than rounding errors."""
    if left.schema.names != right.schema.names or len(left) != len(right):
        return [*range(max(len(left), len(right)))]
    rows: set[int] = set()
    for left_column, right_column in zip(left.columns, right.columns, strict=True):
        rows |= _differing(left_column, right_column)
    return sorted(rows)


def _differing(left: pa.Array, right: pa.Array) -> set[int]:
    if left.type == right.type and left.type in _TOLERANCE:
        tolerance = _TOLERANCE[left.type]
        first, second = (column.to_numpy(zero_copy_only=False).astype(np.float64) for column in (left, right))
        scale = np.abs(first[np.isfinite(first)]).max(initial=0.0)
        close = np.isclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        return {*np.flatnonzero(~close).tolist()}
    tolerance = max(_TOLERANCE.get(_innermost(column.type), 1e-9) for column in (left, right))
    pairs = zip(to_python(left), to_python(right), strict=True)
    return {row for row, (first, second) in enumerate(pairs) if not _is_close(first, second, tolerance)}


def _innermost(type: pa.DataType) -> pa.DataType:
    while pa.types.is_list(type) or pa.types.is_fixed_size_list(type):
        type = type.value_type
    return type


def _is_close(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        both_nan = left != left and right != right
        return both_nan or math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance / 1000)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(
            _is_close(left[name], right[name], tolerance) for name in left
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            _is_close(first, second, tolerance) for first, second in zip(left, right, strict=True)
        )
    return bool(left == right)
