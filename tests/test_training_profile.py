"""The reference profile that training logs, beside what pandas counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from shop import customers, payer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from serving.contract import mlmodel, model_files
from training import log_model
from training.profile import profile

CLASSES = ["setosa", "versicolor", "virginica"]
IRIS = load_iris(as_frame=True).data
IDS = load_iris().target


def of(values: Any) -> Any:
    """The profile of one column."""
    return profile(pd.DataFrame({"it": values}), np.zeros(len(values)), None)["inputs"].get("it")


def counted(values: Any, edges: list[float]) -> list[float]:
    """The share of each bin, as pandas counts it."""
    bins = pd.cut(pd.Series(values), [-np.inf, *edges, np.inf], right=False)
    found: list[float] = (bins.value_counts(sort=False) / len(values)).tolist()
    return found


@pytest.mark.parametrize("name", [*load_diabetes(scaled=False, as_frame=True).data])
def test_numbers_are_cut_at_deciles_as_far_as_ties_let_them(name: str) -> None:
    values = load_diabetes(scaled=False, as_frame=True).data[name]
    found = of(values)
    assert found["shares"] == pytest.approx(counted(values, found["edges"]), abs=1e-6)
    assert not {*found["edges"]} & {*values}
    most_frequent = max(values.value_counts()) / len(values)
    assert all(0.05 < share < 0.1 + most_frequent for share in found["shares"])
    assert len(found["shares"]) == {"sex": 2, "s4": 5}.get(name, 10)


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    found = of([0.0] * 600 + [1.0 + each for each in range(400)])
    assert found["edges"][0] == 0.5
    assert found["shares"][0] == 0.6
    assert found["shares"][1:] == pytest.approx([0.4 / 9] * 9, abs=0.001)


def test_what_is_missing_or_not_finite_is_missing() -> None:
    found = of([*range(100), *[None] * 60, *[np.inf] * 40])
    assert found["missing"] == 0.5
    assert sum(found["shares"]) == pytest.approx(0.5)
    assert np.isfinite(found["edges"]).all()


def test_few_rows_have_few_bins() -> None:
    assert [len(of(np.arange(rows) / 2)["shares"]) for rows in (100, 150, 299, 300, 3000)] == [
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
def test_texts_booleans_and_few_whole_numbers_are_counted_by_themselves(values: Any, expected: Any) -> None:
    found = of(pd.Series(values, dtype=object))
    assert (found["categories"], found["shares"], found["missing"]) == expected


def test_at_most_twenty_categories_are_told() -> None:
    found = of([f"{each:02}" for each in range(40)] * 50)
    assert len(found["categories"]) == 20
    assert found["shares"] == [0.025] * 20 + [0.5]


def test_many_whole_numbers_are_numbers() -> None:
    assert len(of([*range(50)] * 20)["edges"]) == 9


def test_dates_and_mixtures_are_not_told() -> None:
    table = pd.DataFrame(
        {"at": pd.date_range("2026-01-01", periods=100), "mixed": ["a", 1] * 50, "x": [1.5, 2.5] * 50}
    )
    assert profile(table, np.zeros(100), None)["inputs"].keys() == {"x"}


def test_at_most_two_hundred_columns_are_told() -> None:
    table = pd.DataFrame({f"x{each}": np.arange(100.0) for each in range(250)})
    assert len(profile(table, np.zeros(100), None)["inputs"]) == 200


@pytest.mark.parametrize(
    "model", [LogisticRegression(max_iter=1000), LinearSVC()], ids=lambda model: type(model).__name__
)
@pytest.mark.parametrize("ids", [IDS, np.array(CLASSES)[IDS]], ids=["ids", "names"])
def test_a_classifiers_answer_is_told_by_label(model: Any, ids: Any) -> None:
    model.fit(IRIS, ids)
    answer = model.predict_proba(IRIS) if hasattr(model, "predict_proba") else model.predict(IRIS)
    label = profile(IRIS, answer, CLASSES)["outputs"]["label"]
    wanted = pd.Series(np.array(CLASSES)[[[*model.classes_].index(each) for each in model.predict(IRIS)]])
    shares = dict(zip(label["categories"], label["shares"], strict=False))
    assert shares == pytest.approx(wanted.value_counts(normalize=True).to_dict(), abs=1e-6)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_regressors_answer_is_told_by_deciles(shape: tuple[int, ...]) -> None:
    found = profile(customers(300, 0), np.arange(300.0).reshape(shape), None)["outputs"]["prediction"]
    assert found["shares"] == [0.1] * 10


def test_nothing_is_told_of_several_answers_a_row() -> None:
    assert profile(customers(300, 0), np.zeros((300, 2)), None)["outputs"] == {}


# -- logged


@pytest.fixture
def run(registry: str) -> Any:
    with mlflow.start_run() as run:
        yield run


def logged(model: Any, table: Any, **more: Any) -> Any:
    """What an `MLmodel` file tells, and the contract that serving makes of it."""
    found = log_model(model, table, pip_requirements=[], skops_trusted_types=["numpy.dtype"], **more)
    folder = Path(mlflow.artifacts.download_artifacts(found.uri))
    described = asyncio.run(model_files.read(folder)).mlmodel
    return described["metadata"]["serving"], mlmodel.contract(described, "it", 1000)


@pytest.mark.usefixtures("run")
def test_what_training_logs_serving_reads() -> None:
    table = customers(500, 0)
    told, contract = logged(payer(table), table)
    assert contract.warnings == ()
    assert contract.profile.rows == 500
    assert contract.profile.model_dump(exclude_none=True, mode="json") == told["profile"]
    assert contract.profile.inputs.keys() == {*table}
    assert contract.profile.outputs.keys() == {"prediction"}


@pytest.mark.usefixtures("run")
def test_a_wide_table_is_logged_and_read() -> None:
    table = pd.DataFrame(
        np.random.default_rng(0).random((300, 220)), columns=[f"x{each}" for each in range(220)]
    )
    _, contract = logged(DummyRegressor().fit(table, table["x0"]), table)
    assert len(contract.profile.inputs) == 200


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(("rows", "more"), [(99, {}), (500, {"with_profile": False})])
def test_few_rows_are_not_told_nor_what_is_not_wanted(rows: int, more: Any) -> None:
    told, contract = logged(payer(customers(500, 0)), customers(rows, 0), **more)
    assert "profile" not in told
    assert contract.profile is None


@pytest.mark.usefixtures("run")
def test_of_many_rows_some_are_told() -> None:
    table = customers(20_000, 0).sort_values("weight")
    _, contract = logged(payer(table), table)
    assert contract.profile.rows == 10_000
    least, most = contract.profile.inputs["weight"].edges[0], contract.profile.inputs["weight"].edges[-1]
    assert (table["weight"] < least).mean() == pytest.approx(0.1, abs=0.02)
    assert (table["weight"] > most).mean() == pytest.approx(0.1, abs=0.02)
