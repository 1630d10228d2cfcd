"""Slices of labelled rows: the value in a rule is read as the type of the column."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from serving.evaluation.slices import equals, examples

DAYS = [datetime(2024, 1, 1, 0, 0), datetime(2024, 1, 1, 13, 30), datetime(2024, 1, 2), None]
UTC_DAYS = [day and day.replace(tzinfo=UTC) for day in DAYS]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (pa.array(DAYS, pa.timestamp("ns")), "2024-01-01", [1, 1, 0, 0]),
        (pa.array(DAYS, pa.timestamp("us")), "2024-01-01 13:30:00", [0, 1, 0, 0]),
        (pa.array(DAYS, pa.timestamp("us")), "2024-01-01T13:30", [0, 1, 0, 0]),
        (pa.array(DAYS, pa.timestamp("us")), "yesterday", [0, 0, 0, 0]),
        (pa.array(DAYS, pa.timestamp("us")), "2024-13-41", [0, 0, 0, 0]),
        (pa.array(UTC_DAYS, pa.timestamp("us", "Asia/Tokyo")), "2024-01-01", [1, 1, 0, 0]),
        (pa.array(UTC_DAYS, pa.timestamp("us", "Asia/Tokyo")), "2024-01-01 22:30:00", [0, 1, 0, 0]),
        (pa.array(UTC_DAYS, pa.timestamp("us", "Asia/Tokyo")), "2024-01-01T13:30:00Z", [0, 1, 0, 0]),
        (pa.array([date(2024, 1, 1), None]), "2024-01-01", [1, 0]),
        (pa.array(np.array([0.1, 0.2], np.float32)), "0.1", [1, 0]),
        (pa.array([0.1, None, float("nan")]), "0.10", [1, 0, 0]),
        (pa.array([1, 2, None]), "1.0", [1, 0, 0]),
        (pa.array([1, 2]), "one", [0, 0]),
        (pa.array([Decimal("1.50"), Decimal("2.00")]), "1.5", [1, 0]),
        (pa.array([True, False, None]), "1", [1, 0, 0]),
        (pa.array([True, False]), "false", [0, 1]),
        (pa.array(["01", "1", None]), "1", [0, 1, 0]),
        (pa.array(["x", "y"]).dictionary_encode(), "x", [1, 0]),
        (pa.nulls(2), "x", [0, 0]),
    ],
)
def test_value_is_read_as_the_type_of_the_column(column: pa.Array, value: str, expected: list[int]) -> None:
    assert equals(column, value).tolist() == [bool(each) for each in expected]


def test_some_values_of_a_column_are_shown() -> None:
    assert examples(pa.array([10, 9, None, 10])) == "9, 10"
    assert examples(pa.array([*"fedcba"])) == "a, b, c, d, e, …"
    assert examples(pa.nulls(2)) == ""
