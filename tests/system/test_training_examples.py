"""Runs of the two examples, and their results in the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from training.diabetes import diabetes
from training.errors import TrainingError
from training.example import Options, Trained, train
from training.iris import iris


@pytest.fixture(scope="module", autouse=True)
def home(new_registry: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create one registry for all tests, and change to another folder."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_registry(folder))
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Trained:
    return train(iris(), Options())


@pytest.fixture(scope="module")
def model(trained: Trained) -> Path:
    return Path(mlflow.artifacts.download_artifacts(trained.logged.uri))


def test_iris_predicts_held_out_rows_well(trained: Trained) -> None:
    assert trained.rows + trained.held_out == 150
    assert trained.metrics["accuracy"] > 0.9
    assert trained.metrics["f1_macro"] > 0.9
    assert trained.metrics["log_loss"] < 0.3


def test_iris_signature_has_four_doubles_and_probabilities(model: Path) -> None:
    signature = yaml.safe_load((model / "MLmodel").read_text())["signature"]
    columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    assert json.loads(signature["inputs"]) == [
        {"type": "double", "name": name, "required": True} for name in columns
    ]
    assert json.loads(signature["outputs"])[0]["tensor-spec"] == {
        "dtype": "float64",
        "shape": [-1, 3],
    }


def test_iris_metadata_contains_the_contract(model: Path) -> None:
    serving = yaml.safe_load((model / "MLmodel").read_text())["metadata"]["serving"]
    assert serving["task"] == "classification"
    assert serving["classes"] == ["setosa", "versicolor", "virginica"]
    assert serving["inputs"]["petal_width"] == {
        "exclusiveMinimum": 0,
        "maximum": 10,
        "description": "Petal width in cm",
        "unit": "cm",
    }
    assert len(serving["inputs"]) == 4


def test_iris_predicts_probabilities_through_pyfunc(trained: Trained) -> None:
    served = mlflow.pyfunc.load_model(trained.logged.uri)
    predictions = served.predict(served.input_example)
    assert predictions.shape == (5, 3)
    assert predictions.sum(axis=1) == pytest.approx(1)


def test_iris_requirements_are_minimal(model: Path) -> None:
    required = (model / "requirements.txt").read_text().split()
    names = [line.partition("==")[0] for line in required]
    assert names == ["mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops"]
    assert all("==" in line for line in required)


def test_run_has_parameters_metrics_and_a_figure(trained: Trained) -> None:
    run = mlflow.MlflowClient().get_run(trained.logged.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "test_size": "0.25", "regularization": "1.0"}
    assert run.data.metrics == pytest.approx(trained.metrics)
    picture = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/confusion_matrix.png")
    assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_logged_model_has_the_metrics(trained: Trained) -> None:
    logged = mlflow.MlflowClient().get_logged_model(trained.logged.model_id)
    assert {metric.key for metric in logged.metrics or ()} == trained.metrics.keys()


def test_artifacts_are_stored_next_to_the_database(home: Path, trained: Trained) -> None:
    assert [*(home / "mlruns" / "iris" / "models").iterdir()]
    assert list(Path.cwd().iterdir()) == []


def test_equal_options_produce_equal_models(trained: Trained) -> None:
    again = train(iris(), Options())
    assert again.metrics == trained.metrics
    assert again.logged.version == str(int(str(trained.logged.version)) + 1)


@pytest.mark.parametrize("option", [{"seed": 1}, {"regularization": 100.0}, {"test_size": 0.5}])
def test_every_option_changes_the_metrics(trained: Trained, option: dict[str, Any]) -> None:
    changed = train(iris(), replace(Options(), **option))
    assert changed.metrics != trained.metrics


def test_too_small_split_is_reported_in_one_sentence() -> None:
    with pytest.raises(TrainingError, match="can't be split"):
        train(iris(), Options(test_size=0.001))


def test_diabetes_is_a_regressor_with_ten_inputs() -> None:
    trained = train(diabetes(), Options())
    served = mlflow.pyfunc.load_model(trained.logged.uri)
    assert served.metadata.metadata["serving"]["task"] == "regression"
    assert served.metadata.metadata["serving"]["inputs"]["sex"]["enum"] == [1, 2]
    assert "classes" not in served.metadata.metadata["serving"]
    assert {column.type.name for column in served.metadata.signature.inputs} == {"double"}
    assert len(served.metadata.signature.inputs) == 10
    assert served.predict(served.input_example).shape == (5,)
    assert trained.metrics["r2"] > 0.3
