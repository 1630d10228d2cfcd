"""Whether requests of different callers may share a call of the model: only where that is proven safe.

No signature declares that the rows of a table are independent of each other. So a version's rows are run
alone and in several combinations before it goes live, and a few of its live batches are run again row by
row later (`sharing_monitor.py`). The first difference ends sharing.
"""

from __future__ import annotations

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
from serving.types.nested import to_python

MAX_ROWS = 12
_MIN_ROWS = 2
_MAX_TAG_LENGTH, _MAX_REASON_LENGTH = 5000, 200
_MAX_REPEATED_ROWS = 64
_BUDGET_SECONDS = 4.0
"""Time that the proof may take, beyond the calls that it can't do without."""
_TOLERANCE = {pa.float64(): 1e-9, pa.float32(): 1e-5, pa.float16(): 1e-2}
"""Relative differences of floating point that come from the shape of a table: BLAS sums in another order."""

Call: TypeAlias = Callable[[pa.RecordBatch], Awaitable[pa.RecordBatch]]
"""Calls the model with a table, alone, and returns its output."""


class Basis(StrEnum):
    """What a decision rests on."""

    PROOF = "proof"
    MONITORING = "monitoring"
    METADATA = "metadata"
    FORM = "output form"


@dataclass(frozen=True, slots=True)
class Sharing:
    """Whether callers may share a call, on what basis, and why in a sentence."""

    allowed: bool
    basis: Basis
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return it as `/ready` and the version's tag have it."""
        return {"shared": self.allowed, "basis": self.basis.value, "reason": self.reason}


TAG = "serving.batching"
"""The version's tag in which a front reports its decision, as JSON."""


def reported(tags: Mapping[str, str]) -> Sharing | None:
    """Return what a front has found out in live requests, as a version's tag has it; None if nothing."""
    try:
        report = orjson.loads(tags.get(TAG, "{}")[:_MAX_TAG_LENGTH])
    except ValueError:
        return None
    if not isinstance(report, dict) or report.get("basis") != Basis.MONITORING:
        return None
    return Sharing(False, Basis.MONITORING, str(report.get("reason", ""))[:_MAX_REASON_LENGTH])


UNDECIDED = Sharing(False, Basis.PROOF, "it has not been proven yet")
HOW_TO_PROVE = (
    "log it with an input example of several rows, or set its metadata serving.batching to true if each "
    "prediction depends on its own row alone"
)


def overridden(batching: bool | None) -> Sharing | None:
    """Return what the metadata `serving.batching` decides; None where it is absent."""
    if batching is None:
        return None
    return Sharing(batching, Basis.METADATA, f"its metadata serving.batching is {str(batching).lower()}")


async def prove(tables: Sequence[pa.RecordBatch], call: Call) -> Sharing:
    """Run rows alone, together, in other orders and repeated, and decide whether callers may share a call.

    Args:
        tables: rows to run, the most trusted first; those unlike the first are passed over.
        call: calls the model.

    Raises:
        ProcessDied: the model process died.
    """
    rows, alone, seconds = await _alone(_distinct(tables), call)
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
            return Sharing(False, Basis.PROOF, f"it fails on {name}, though not on each alone: {error}")
        if (
            model_output.is_reordered(output)
            or model_output.form(output) is OutputForm.WHOLE
            or len(output) != len(order)
        ):
            return Sharing(False, Basis.PROOF, f"it does not return one result per row for {name}")
        for place, row in enumerate(order):
            if differing_rows(alone[row], output.slice(place, 1)):
                return Sharing(
                    False, Basis.PROOF, f"a prediction depends on the other rows: it is another for {name}"
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


async def _alone(
    rows: pa.RecordBatch | None, call: Call
) -> tuple[pa.RecordBatch, list[pa.RecordBatch], float]:
    """Run each row alone; returns those that the model takes, its outputs, and the seconds of it all."""
    taken: list[int] = []
    outputs: list[pa.RecordBatch] = []
    began, longest = time.perf_counter(), 0.0
    if rows is None:
        return pa.record_batch([]), [], 0.0
    for index in range(len(rows)):
        spent = time.perf_counter() - began
        # The combinations take about as long as three single calls each, or far less.
        if len(taken) >= _MIN_ROWS and spent + longest > _BUDGET_SECONDS / 2:
            break
        try:
            outputs.append(await call(rows.slice(index, 1)))
            taken.append(index)
        except ModelFailed:
            pass  # a generated row may be none that the model knows
        longest = max(longest, time.perf_counter() - began - spent)
    return rows.take(pa.array(taken, pa.int64())), outputs, time.perf_counter() - began


def _combinations(rows: int, seconds: float) -> list[tuple[str, list[int]]]:
    """Return orders in which to run the rows together, with names; fewer if time is short."""
    together = [*range(rows)]
    halves = together[rows // 2 :] + together[: rows // 2]
    repeated = [row for row in reversed(halves) for _ in range(2)]
    many = (together * _MAX_REPEATED_ROWS)[: max(_MAX_REPEATED_ROWS, rows)]
    found = [
        ("several rows at once", together),
        ("rows in another order", [*reversed(together)]),
        ("repeated rows", repeated),
        ("some of the rows", together[: (rows + 1) // 2] or together),
        ("one row repeated", [0] * rows),
        ("many rows", many),
    ]
    return found if seconds > 0 else found[:3]


def _is_single(output: pa.RecordBatch) -> bool:
    return model_output.form(output) is not OutputForm.WHOLE and len(output) == 1


def differing_rows(one: pa.RecordBatch, other: pa.RecordBatch) -> list[int]:
    """Return the rows in which two outputs of as many rows differ by more than the last bits."""
    if one.schema.names != other.schema.names or len(one) != len(other):
        return [*range(max(len(one), len(other)))]
    rows: set[int] = set()
    for first, second in zip(one.columns, other.columns, strict=True):
        rows |= _differing(first, second)
    return sorted(rows)


def _differing(one: pa.Array, other: pa.Array) -> set[int]:
    if one.type == other.type and one.type in _TOLERANCE:
        tolerance = _TOLERANCE[one.type]
        first, second = (column.to_numpy(zero_copy_only=False).astype(np.float64) for column in (one, other))
        scale = np.abs(first[np.isfinite(first)]).max(initial=0.0)
        alike = np.isclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        return {*np.flatnonzero(~alike).tolist()}
    tolerance = max(_TOLERANCE.get(_innermost(column.type), 1e-9) for column in (one, other))
    pairs = zip(to_python(one), to_python(other), strict=True)
    return {row for row, (first, second) in enumerate(pairs) if not _is_alike(first, second, tolerance)}


def _innermost(type: pa.DataType) -> pa.DataType:
    while pa.types.is_list(type) or pa.types.is_fixed_size_list(type):
        type = type.value_type
    return type


def _is_alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        both_nan = one != one and other != other
        return both_nan or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance / 1000)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            _is_alike(one[name], other[name], tolerance) for name in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _is_alike(first, second, tolerance) for first, second in zip(one, other, strict=True)
        )
    return bool(one == other)
