"""Labelled rows as `training.log_model` writes them, and as the service reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from serving.evaluation.samples import OutputKind, Sample, VersionSample
from serving.evaluation.sources import LabelledRows, read_file
from serving.promotion_errors import PromotionWaits
from training import labelled_rows
from training.contract import Contract

TABLE = pd.DataFrame({"age": [20.0, 30.0, 40.0, 50.0]})


def written(model: Any, labels: Any, classes: list[str] | None) -> list[Any]:
    """Return the labels in the file that is logged with a model."""
    contract = Contract("classification" if classes else "regression", classes)
    with labelled_rows.files((TABLE, labels), ["age"], model, contract) as (file,):
        return list(pd.read_parquet(file)["target"])


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ([False, True, False, True], ["no", "yes"]),
        ([-1, 1, -1, 1], ["neg", "pos"]),
        ([-1.0, 1.0, -1.0, 1.0], ["-1.0", "1.0"]),
        ([1.0, 2.0, 3.0, 1.0], ["1.0", "2.0", "3.0"]),
        ([1, 2, 3, 1], ["x", "y", "z"]),
        (["a", "b", "a", "b"], ["first", "second"]),
    ],
)
@pytest.mark.parametrize("is_pipeline", [False, True])
def test_labels_of_the_training_become_names(target: list[Any], names: list[str], is_pipeline: bool) -> None:
    classifier = make_pipeline(FunctionTransformer(), DummyClassifier()) if is_pipeline else DummyClassifier()
    model = classifier.fit(TABLE, target)
    by_label = dict(zip(model.classes_.tolist(), names, strict=True))
    expected = [by_label[label] for label in target]
    for labels in (target, pd.Series(target, dtype="category"), pd.DataFrame({"y": target})):
        assert written(model, labels, names) == expected
    assert written(model, expected, names) == expected


def test_labels_may_be_equal_numbers_of_another_type() -> None:
    model = DummyClassifier().fit(TABLE, [False, True, False, True])
    assert written(model, np.array([0, 1, 1, 0]), ["no", "yes"]) == ["no", "yes", "yes", "no"]


@pytest.mark.parametrize("model", [DummyClassifier().fit(TABLE, ["no", "yes", "no", "yes"]), object()])
def test_labels_may_be_numbers_of_named_classes(model: Any) -> None:
    assert written(model, np.array([0, 1, 1, 0]), ["no", "yes"]) == ["no", "yes", "yes", "no"]


def test_labels_of_a_regressor_stay_numbers() -> None:
    model = DummyRegressor().fit(TABLE, [1, 2, 3, 4])
    assert written(model, [1.5, 2, 3, 4], None) == [1.5, 2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 0, 1], "row 2 of evaluation has the label 0, which is no class of the model: .* 1, 2"),
        (["x", "y", "z", "x"], "row 2 of evaluation has the label 'z', which is no class"),
        ([1.0, 2.0, np.nan, 1.0], "row 2 of evaluation has the label nan, which is no class"),
        ([[1, 2], [2, 1], [1, 2], [1, 2]], "2 dimensions"),
        ([1, 2, 1], "4 rows and 3 labels"),
    ],
)
def test_unknown_labels_are_rejected(labels: Any, message: str) -> None:
    model = DummyClassifier().fit(TABLE, [1, 2, 1, 2])
    with pytest.raises(ValueError, match=message):
        written(model, labels, ["x", "y"])


async def csv_rows(folder: Path, labels: list[str]) -> LabelledRows:
    """Return the rows of a CSV file with these texts in the column of the labels."""
    path = folder / "rows.csv"
    path.write_text("x,target\n" + "".join(f"1,{label}\n" for label in labels))
    return await read_file(path, "a test", "sha256:0")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("texts", "classes", "expected"),
    [
        (["true", "false"], ["false", "true"], ["true", "false"]),
        (["01", "02"], ["01", "02"], ["01", "02"]),
        (["1.0", "2.0"], ["1.0", "2.0"], ["1.0", "2.0"]),
        (["10:20", "10:30"], ["10:20", "10:30"], ["10:20", "10:30"]),
        (["2024-01-01"], ["2024-01-01"], ["2024-01-01"]),
        (["NA", "OK"], ["NA", "OK"], ["NA", "OK"]),
        (["1", "new"], ["1", "2"], ["1", "new"]),
        (["0", "1"], ["no", "yes"], [0, 1]),
        (["0.0", " 1.0"], ["no", "yes"], [0.0, 1.0]),
        (["true", "false"], ["no", "yes"], [True, False]),
        (["1.5", " 2", "1e5"], [], [1.5, 2.0, 100_000.0]),
    ],
)
async def test_labels_of_a_csv_file_are_classes_or_numbers(
    tmp_path: Path, texts: list[str], classes: list[str], expected: list[Any]
) -> None:
    rows = await csv_rows(tmp_path, texts)
    assert rows.labels_for(classes).to_pylist() == expected
    assert rows.table.column_names == ["x"]


@pytest.mark.anyio
async def test_numbers_of_a_csv_file_suit_a_regressor(tmp_path: Path) -> None:
    """Test also that a fraction may follow the first megabyte, from which Arrow derives types."""
    rows = await csv_rows(tmp_path, [*["1"] * 300_000, "1.5"])
    predicted = VersionSample(OutputKind.NUMBER, [rows.labels_for([])])
    sample = Sample(rows.labels_for([]), {}, predicted)
    assert sample.outcomes(predicted, "mae").labels[[0, -1]].tolist() == [1.0, 1.5]


@pytest.mark.anyio
@pytest.mark.parametrize("labels", [["a", "", "b"], ["a", '""', "b"], ["1", "NA", "2"]])
async def test_missing_label_of_a_csv_file_is_reported(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(PromotionWaits, match="1 rows have no value in the column 'target'"):
        await csv_rows(tmp_path, labels)


def test_labels_with_a_type_stay_as_they_are() -> None:
    rows = LabelledRows(pa.table({"x": [1]}), pa.array([1]), "a test", "sha256:0")
    assert rows.labels_for(["1"]).to_pylist() == [1]
