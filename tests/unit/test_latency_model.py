"""Estimate of the number of rows that a model can process in time."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching.latency_model import BatchLatencyModel


def latency_model(
    batches: list[tuple[int, float]], max_queue_seconds: float = 1.0, processes: int = 1
) -> BatchLatencyModel:
    model = BatchLatencyModel(max_queue_seconds, processes)
    for rows, seconds in batches:
        model.observe(rows, 256, seconds)
    return model


def test_limit_is_infinite_before_first_batch() -> None:
    assert latency_model([]).max_rows == math.inf


def test_slow_first_batches_of_a_version_are_no_overload() -> None:
    assert latency_model([(1, 0.1), (3, 0.3)]).max_rows == math.inf


@given(
    call=st.floats(1e-3, 0.1),
    row=st.floats(1e-4, 0.05),
    sizes=st.lists(st.integers(1, 256), min_size=2, max_size=30, unique=True),
    processes=st.integers(1, 8),
)
def test_call_and_row_times_are_separated(call: float, row: float, sizes: list[int], processes: int) -> None:
    batches = [(size, call + row * size) for size in sizes]
    repeats = math.ceil(1 / sum(seconds for _, seconds in batches))
    model = latency_model(batches * repeats, processes=processes)
    assert model.max_rows == pytest.approx(processes / (call / 256 + row), rel=0.05)


@pytest.mark.parametrize("size", [1, 7, 256])
def test_equal_batches_imply_no_cost_per_row(size: int) -> None:
    assert latency_model([(size, 0.02)] * 50).max_rows == pytest.approx(256 / 0.02)


def test_slow_model_may_queue_minimum_of_calls() -> None:
    assert latency_model([(1, 2.0), (2, 4.0), (3, 6.0)]).max_rows == pytest.approx(4)


def test_limit_rises_when_model_speeds_up() -> None:
    slow = [(size, 0.1 * size) for size in (1, 2, 4)]
    assert latency_model(slow).max_rows == pytest.approx(10, rel=0.1)
    assert latency_model(slow + [(size, 0.001 * size) for size in (1, 2, 4)] * 1000).max_rows > 900


def test_single_slow_batch_keeps_limit_high() -> None:
    numbers = random.Random(0)
    usual = [(size := numbers.randint(20, 44), 0.0014 + 1e-6 * size) for _ in range(1000)]
    assert latency_model([*usual, (44, 0.1)]).max_rows > 5000


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 100)), min_size=1))
def test_limit_is_at_least_one_row(batches: list[tuple[int, float]]) -> None:
    assert latency_model(batches).max_rows >= 1
