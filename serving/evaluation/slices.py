"""Select the rows that have a value in a column; the text of a rule is read as the column's type."""

from __future__ import annotations

import re
from contextlib import suppress

import numpy as np
import pyarrow as pa
from pyarrow import compute, types

from serving.evaluation.class_codes import enumeration, in_order, number, values
from serving.evaluation.outcomes import Mask, NotComputable

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def equals(column: pa.Array, value: str) -> Mask:
    """Return which rows have a value; a date selects the rows of the day in a column of times.

    Raises:
        NotComputable: values of this type have no text.
    """
    if types.is_floating(column.type):
        with suppress(ValueError):
            numbers = column.to_numpy(zero_copy_only=False)
            return np.asarray(numbers == numbers.dtype.type(float(value)))
        return np.zeros(len(column), bool)
    if types.is_timestamp(column.type):
        return _has_time(column, value)
    found, wanted = values(column), None
    if types.is_integer(column.type) or types.is_decimal(column.type) or types.is_boolean(column.type):
        wanted = number(value)
    chosen = [text == value or (wanted is not None and number(text) == wanted) for text in found.texts]
    return np.array([*chosen, False])[found.places]


def _has_time(column: pa.Array, value: str) -> Mask:
    try:
        if _DATE.fullmatch(value):
            wanted = pa.scalar(value).cast(pa.date32())
            column = compute.cast(compute.local_timestamp(column) if column.type.tz else column, pa.date32())
        else:
            wanted = _time(value, column.type)
        equal: Mask = compute.fill_null(compute.equal(column, wanted), False).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        return np.zeros(len(column), bool)
    return equal


def _time(value: str, kind: pa.TimestampType) -> pa.Scalar:
    """Return a time; without an offset it is a local time of the column's time zone."""
    if kind.tz:
        with suppress(pa.ArrowException):
            return compute.assume_timezone(pa.scalar(value).cast(pa.timestamp(kind.unit)), kind.tz)
    return pa.scalar(value).cast(kind)


def examples(column: pa.Array) -> str:
    """Return some values of a column as text; empty if they have none."""
    with suppress(NotComputable):
        return enumeration(in_order(values(column.drop_null()).texts))
    return ""
