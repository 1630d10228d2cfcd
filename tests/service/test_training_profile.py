"""The reference profile that training logs, compared with counts by pandas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from serving.contract import mlmodel, model_files
from tests.support.customer_data import customers, payer
from training import log_model
from training.reference_profile import profile

CLASSES = ["setosa", "versicolor", "virginica"]
IRIS = load_iris(as_frame=True).data
IDS = load_iris().target


def profile_of(values: Any) -> Any:
    """Return the profile of one column."""
    return profile(pd.DataFrame({"it": values}), np.zeros(len(values)), None)["inputs"].get("it")


def pandas_shares(values: Any, edges: list[float]) -> list[float]:
    """Return the share of each bin, counted by pandas."""
    bins = pd.cut(pd.Series(values), [-np.inf, *edges, np.inf], right=False)
    column: list[float] = (bins.value_counts(sort=False) / len(values)).tolist()
    return column


@pytest.mark.parametrize("name", [*load_diabetes(scaled=False, as_frame=True).data])
def test_numbers_are_divided_at_deciles(name: str) -> None:
    values = load_diabetes(scaled=False, as_frame=True).data[name]
    column = profile_of(values)
    assert column["shares"] == pytest.approx(pandas_shares(values, column["edges"]), abs=1e-6)
    assert not {*column["edges"]} & {*values}
    most_frequent = max(values.value_counts()) / len(values)
    assert all(0.05 < share < 0.1 + most_frequent for share in column["shares"])
    assert len(column["shares"]) == {"sex": 2, "s4": 5}.get(name, 10)


def test_frequent_value_has_its_own_bin() -> None:
    column = profile_of([0.0] * 600 + [1.0 + number for number in range(400)])
    assert column["edges"][0] == 0.5
    assert column["shares"][0] == 0.6
    assert column["shares"][1:] == pytest.approx([0.4 / 9] * 9, abs=0.001)


def test_non_finite_values_count_as_missing() -> None:
    column = profile_of([*range(100), *[None] * 60, *[np.inf] * 40])
    assert column["missing"] == 0.5
    assert sum(column["shares"]) == pytest.approx(0.5)
    assert np.isfinite(column["edges"]).all()


def test_few_rows_have_few_bins() -> None:
    assert [len(profile_of(np.arange(rows) / 2)["shares"]) for rows in (100, 150, 299, 300, 3000)] == [
        3,
        5,
        9,
        10,
        10,
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a"] * 60 + ["b"] * 30 + [None] * 10, (["a", "b"], [0.6, 0.3, 0], 0.1)),
        ([True] * 75 + [False] * 25, ([True, False], [0.75, 0.25, 0], 0)),
        ([3] * 75 + [7] * 25, ([3, 7], [0.75, 0.25, 0], 0)),
        (["a"] * 199 + ["rare"], (["a"], [0.995, 0.005], 0)),
        (["x" * 101] * 100, ([], [1], 0)),
    ],
    ids=["texts", "booleans", "whole numbers", "a rare one", "long ones"],
)
def test_categories_are_counted_separately(values: Any, expected: Any) -> None:
    column = profile_of(pd.Series(values, dtype=object))
    assert (column["categories"], column["shares"], column["missing"]) == expected


def test_profile_has_at_most_twenty_categories() -> None:
    column = profile_of([f"{number:02}" for number in range(40)] * 50)
    assert len(column["categories"]) == 20
    assert column["shares"] == [0.025] * 20 + [0.5]


def test_many_distinct_integers_are_numeric() -> None:
    assert len(profile_of([*range(50)] * 20)["edges"]) == 9


def test_dates_and_mixed_columns_are_omitted() -> None:
    table = pd.DataFrame(
        {"at": pd.date_range("2026-01-01", periods=100), "mixed": ["a", 1] * 50, "x": [1.5, 2.5] * 50}
    )
    assert profile(table, np.zeros(100), None)["inputs"].keys() == {"x"}


def test_profile_has_at_most_two_hundred_columns() -> None:
    table = pd.DataFrame({f"x{number}": np.arange(100.0) for number in range(250)})
    assert len(profile(table, np.zeros(100), None)["inputs"]) == 200


@pytest.mark.parametrize(
    "model", [LogisticRegression(max_iter=1000), LinearSVC()], ids=lambda model: type(model).__name__
)
@pytest.mark.parametrize("ids", [IDS, np.array(CLASSES)[IDS]], ids=["ids", "names"])
def test_classifier_output_is_counted_by_label(model: Any, ids: Any) -> None:
    model.fit(IRIS, ids)
    output = model.predict_proba(IRIS) if hasattr(model, "predict_proba") else model.predict(IRIS)
    label = profile(IRIS, output, CLASSES)["outputs"]["label"]
    expected = pd.Series(np.array(CLASSES)[[[*model.classes_].index(label) for label in model.predict(IRIS)]])
    shares = dict(zip(label["categories"], label["shares"], strict=False))
    assert shares == pytest.approx(expected.value_counts(normalize=True).to_dict(), abs=1e-6)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_regressor_output_is_divided_at_deciles(shape: tuple[int, ...]) -> None:
    column = profile(customers(300, 0), np.arange(300.0).reshape(shape), None)["outputs"]["prediction"]
    assert column["shares"] == [0.1] * 10


def test_several_outputs_per_row_are_omitted() -> None:
    assert profile(customers(300, 0), np.zeros((300, 2)), None)["outputs"] == {}


# -- logged


@pytest.fixture
def run(registry: str) -> Any:
    with mlflow.start_run() as run:
        yield run


def logged(model: Any, table: Any, **options: Any) -> Any:
    """Return the `serving` metadata of a logged model, and the contract that the service reads from it."""
    version = log_model(model, table, pip_requirements=[], skops_trusted_types=["numpy.dtype"], **options)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    mlmodel_file = asyncio.run(model_files.read(folder)).mlmodel
    return mlmodel_file["metadata"]["serving"], mlmodel.contract(mlmodel_file, "it", 1000)


@pytest.mark.usefixtures("run")
def test_service_reads_the_logged_profile() -> None:
    table = customers(500, 0)
    metadata, contract = logged(payer(table), table)
    assert contract.warnings == ()
    assert contract.profile.rows == 500
    assert contract.profile.model_dump(exclude_none=True, mode="json") == metadata["profile"]
    assert contract.profile.inputs.keys() == {*table}
    assert contract.profile.outputs.keys() == {"prediction"}


@pytest.mark.usefixtures("run")
def test_wide_table_is_logged_and_read() -> None:
    table = pd.DataFrame(
        np.random.default_rng(0).random((300, 220)), columns=[f"x{number}" for number in range(220)]
    )
    _, contract = logged(DummyRegressor().fit(table, table["x0"]), table)
    assert len(contract.profile.inputs) == 200


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(("rows", "options"), [(99, {}), (500, {"with_profile": False})])
def test_profile_is_omitted_for_few_rows_or_on_request(rows: int, options: Any) -> None:
    metadata, contract = logged(payer(customers(500, 0)), customers(rows, 0), **options)
    assert "profile" not in metadata
    assert contract.profile is None


@pytest.mark.usefixtures("run")
def test_profile_samples_many_rows() -> None:
    table = customers(20_000, 0).sort_values("weight")
    _, contract = logged(payer(table), table)
    assert contract.profile.rows == 10_000
    least, most = contract.profile.inputs["weight"].edges[0], contract.profile.inputs["weight"].edges[-1]
    assert (table["weight"] < least).mean() == pytest.approx(0.1, abs=0.02)
    assert (table["weight"] > most).mean() == pytest.approx(0.1, abs=0.02)
