"""The population stability index (PSI), its false alarms, and the decayed histogram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.contract.reference_profile import Distribution, read
from serving.drift.population_stability import DecayedHistogram, min_rows, psi_terms
from serving.types.columns import Column

COLUMNS = [Column("x", "double"), Column("name", "string"), Column("at", "datetime")]
NUMBERS = Distribution(edges=(1.5, 2.5), shares=(0.5, 0.25, 0.15), missing=0.1)
FLAGS = Distribution(categories=(True, False), shares=(0.5, 0.5, 0))
COLOURS = Distribution(categories=("red", "blue"), shares=(0.6, 0.3, 0.1))
counts = st.lists(st.integers(2, 1000), min_size=2, max_size=12)


# -- PSI


@given(counts, st.data())
def test_psi_is_the_symmetric_divergence(then: list[int], data: st.DataObject) -> None:
    now = data.draw(st.lists(st.integers(2, 1000), min_size=len(then), max_size=len(then)))
    found = psi_terms(np.array(then) / sum(then), 10**6, np.array(now) * 1e6)
    assert found.sum() == pytest.approx(stats.entropy(now, then) + stats.entropy(then, now))
    assert (found >= 0).all()


def test_psi_of_two_bins_equals_manual_calculation() -> None:
    found = psi_terms(np.array([0.5, 0.5]), 1000, np.array([80.0, 20.0]))
    assert found.tolist() == pytest.approx([0.3 * math.log(1.6), -0.3 * math.log(0.4)])


@given(counts)
def test_psi_of_unchanged_data_is_zero(then: list[int]) -> None:
    assert psi_terms(np.array(then) / sum(then), sum(then), np.array(then, float)).sum() == 0


@pytest.mark.parametrize(("rows", "least"), [(50, 0.01), (1000, 0.0005), (10**6, 0.0001)])
def test_empty_bin_counts_as_half_a_row(rows: int, least: float) -> None:
    found = psi_terms(np.array([1.0, 0.0, 0.0]), rows, np.array([9e6, 1e6, 0.0]))
    assert found[1] == pytest.approx((0.1 - least) * math.log(0.1 / least))
    assert found[2] == 0


# -- false alarms


@pytest.mark.parametrize("bins", range(2, 25))
def test_min_rows_approximate_the_chi_square_quantile(bins: int) -> None:
    exact = 0.25 / stats.chi2.ppf(0.9999, bins - 1) - 1 / 1000
    assert min_rows(np.full(bins, 1 / bins), 1000, 0.25) == pytest.approx(1 / exact, rel=0.08)


def test_small_reference_requires_infinite_rows() -> None:
    assert min_rows(np.full(10, 0.1), 100, 0.25) == math.inf


@pytest.mark.parametrize(
    ("rows", "shares"),
    [
        (100, [1, 1, 1]),
        (112, [0.33, 0.33, 0.33, 0.01]),
        (112, [0.95, 0.05]),
        (300, [0.1] * 10),
        (300, [0.5, 0.3, 0.13, 0.05, 0.02]),
        (600, [0.06] * 15 + [0.05, 0.03, 0.01, 0.01]),
        (10_000, [0.1] * 10),
    ],
)
def test_false_alarms_are_rare(rows: int, shares: list[float]) -> None:
    chance, trials = np.random.default_rng(0), 5000
    share = np.array(shares) / sum(shares)
    alarms = 0
    for _ in range(trials):
        then = chance.multinomial(rows, share) / rows
        now = chance.multinomial(math.ceil(min_rows(then, rows, 0.25)), share).astype(float)
        alarms += psi_terms(then, rows, now).sum() > 0.25
    assert alarms <= trials / 1000


# -- counting


@pytest.mark.parametrize(
    ("reference", "values", "expected"),
    [
        (NUMBERS, [1.0, 1.5, 2.0, 2.5, 1e300, -1e300, 3], [2, 2, 3, 0]),
        (NUMBERS, [None, "1.0", math.nan, [1.0]], [0, 0, 0, 4]),
        (Distribution(edges=(), shares=(1.0,)), [1.0, 2.0, None], [2, 1]),
        (COLOURS, ["red", "blue", "green", "", "red"], [2, 1, 2, 0]),
        (COLOURS, [None, ["red"], {}], [0, 0, 0, 3]),
        (
            Distribution(categories=(True, False), shares=(0.5, 0.5, 0)),
            [True, False, False, None],
            [1, 2, 0, 1],
        ),
        (Distribution(categories=(3, 7), shares=(0.5, 0.5, 0)), [3, 7, 7, 5], [1, 2, 1, 0]),
    ],
)
def test_values_are_counted_in_their_bins(
    reference: Distribution, values: list[Any], expected: list[int]
) -> None:
    sketch = DecayedHistogram(reference, 1000, 0.25)
    sketch.count(values)
    assert sketch.counts.tolist() == expected


@given(st.lists(st.integers(0, 1000), max_size=60))
def test_histogram_weighs_at_most_ten_thousand_rows(sizes: list[int]) -> None:
    sketch = DecayedHistogram(NUMBERS, 1000, 0.25)
    for size in sizes:
        sketch.count([1.0] * size)
    assert sketch.rows <= 10_000
    assert sketch.rows >= min(5000, sum(sizes))


def test_old_rows_decay() -> None:
    sketch = DecayedHistogram(NUMBERS, 1000, 0.25)
    for value in (1.0, 2.0):
        for _ in range(60):
            sketch.count([value] * 1000)
    assert sketch.counts[1] / sketch.counts.sum() > 0.99


@pytest.mark.parametrize(
    ("reference", "values", "expected"),
    [
        (NUMBERS, [1.0] * 90 + [2.0] * 10, "90% of its values are below 1.5, as against 50%"),
        (NUMBERS, [2.0] * 100, "100% of its values are from 1.5 to 2.5, as against 25%"),
        (NUMBERS, [7.0] * 100, "100% of its values are 2.5 or more, as against 15%"),
        (NUMBERS, [None] * 100, "100% of its values are missing, as against 10%"),
        (COLOURS, ["blue"] * 100, "100% of its values are 'blue', as against 30%"),
        (
            COLOURS,
            ["new"] * 100,
            "100% of its values are none of the frequent ones, as against 10%",
        ),
    ],
)
def test_shift_is_described_in_words(reference: Distribution, values: list[Any], expected: str) -> None:
    sketch = DecayedHistogram(reference, 1000, 0.25)
    sketch.count(values)
    assert sketch.describe_shift() == f"{expected} in training"


# -- reading


def sample(**more: Any) -> dict[str, Any]:
    return {"rows": 100, "inputs": {"x": {"edges": [1.5], "shares": [0.5, 0.5], "missing": 0.0} | more}}


def test_valid_profile_is_read() -> None:
    assert read(sample(), COLUMNS, {}).inputs["x"].edges == (1.5,)


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ("all of it", "should be a valid dictionary"),
        ({"inputs": {}}, "rows: Field required"),
        ({"rows": 0}, "rows: Input should be greater"),
        (sample(shares=[1.0]), r"inputs\.x: .*write 2 shares"),
        (sample(shares=[0.5, 0.2]), "the sum of shares and missing should be 1"),
        (sample(missing=0.5), "the sum of shares and missing should be 1"),
        (sample(categories=["a"]), "write edges, or categories"),
        (sample(edges=None), "write edges, or categories"),
        (sample(edges=[2.0, 1.0], shares=[0.5, 0.2, 0.3]), "edges should ascend"),
        (sample(edges=[1.0, 1.0], shares=[0.5, 0.2, 0.3]), "edges should ascend"),
        (sample(edges=[math.nan]), "finite number"),
        (sample(edges=[float(edge) for edge in range(51)]), "at most 50 items"),
        (sample(colour="red"), "Extra inputs are not permitted"),
        (
            sample(edges=None, categories=["a"]),
            r"inputs\.x is not a column, or has another type of values",
        ),
        (
            {"rows": 9, "inputs": {"name": sample()["inputs"]["x"]}},
            "inputs.name is not a column, or has another type",
        ),
        ({"rows": 9, "inputs": {"at": sample()["inputs"]["x"]}}, "inputs.at is not a column, or has"),
        ({"rows": 9, "inputs": {"y": sample()["inputs"]["x"]}}, "inputs.y is not a column"),
        (
            {"rows": 9, "outputs": {"label": sample()["inputs"]["x"]}},
            "outputs.label is none of prediction",
        ),
        (
            {"rows": 9, "inputs": dict.fromkeys(map(str, range(201)), sample()["inputs"]["x"])},
            "at most 200 items",
        ),
    ],
)
def test_invalid_profile_is_rejected_with_a_reason(profile: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(profile, COLUMNS, {"prediction": float})
