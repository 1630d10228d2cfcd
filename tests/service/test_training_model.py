"""`log_model`: the contract that it derives from a scikit-learn-like model and a table."""

from __future__ import annotations

import warnings
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC, OneClassSVM

from training import Logged, log_model
from training.requirements import pinned

pytestmark = pytest.mark.usefixtures("registry")

TABLE = pd.DataFrame({"age": [20.0, 30.0, 40.0, 50.0], "weight": [60.0, 70.0, 80.0, 90.0]})


@pytest.fixture(autouse=True)
def run(registry: str) -> Any:
    with mlflow.start_run() as run:
        yield run


def read(logged: Logged) -> Model:
    return Model.load(mlflow.artifacts.download_artifacts(logged.uri))


def serving(logged: Logged) -> dict[str, Any]:
    metadata = read(logged).metadata
    assert metadata
    serving: dict[str, Any] = metadata["serving"]
    return serving


def test_each_call_registers_a_new_version() -> None:
    model = DummyRegressor().fit(TABLE, [1, 2, 3, 4])
    logged = [log_model(model, TABLE, registered_model_name="ages") for _ in range(2)]
    assert [version.uri for version in logged] == ["models:/ages/1", "models:/ages/2"]


def test_registered_version_has_a_digest_tag() -> None:
    logged = log_model(DummyRegressor().fit(TABLE, [1, 2, 3, 4]), TABLE, registered_model_name="ages")
    model = mlflow.MlflowClient().get_logged_model(logged.model_id)
    folder = Path(model.artifact_location)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)}\0{sha256(path.read_bytes()).hexdigest()}\n" for path in files]
    version = mlflow.MlflowClient().get_model_version("ages", "1")
    assert len(files) > 3
    assert version.tags["serving.digest"] == f"sha256:{sha256(''.join(lines).encode()).hexdigest()}"


def test_unregistered_model_has_no_version(run: Any) -> None:
    logged = log_model(DummyRegressor().fit(TABLE, [1, 2, 3, 4]), TABLE)
    assert (logged.name, logged.version, logged.run_id) == (None, None, run.info.run_id)
    assert logged.uri == f"models:/{logged.model_id}"
    assert read(logged).signature is not None


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.Series([1.5, 2.5]), "double (required)"),
        (pd.Series([1.5, None]), "double (optional)"),
        (pd.Series([1.5, 2.5], dtype="float32"), "float (required)"),
        (pd.Series([1, 2]), "long (required)"),
        (pd.Series([1, 2], dtype="int32"), "integer (required)"),
        (pd.Series([1, 2], dtype="Int64"), "long (required)"),
        (pd.Series([1, None], dtype="Int64"), "double (optional)"),
        (pd.Series([1, None], dtype="int64[pyarrow]"), "double (optional)"),
        (pd.Series([True, False]), "boolean (required)"),
        (pd.Series(["a", "b"]), "string (required)"),
        (pd.Series(["a", None]), "string (optional)"),
        (pd.Series(["a", "b"], dtype="category"), "string (required)"),
        (pd.Series(pd.to_datetime(["2026-01-01", "2026-01-02"])), "datetime (required)"),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_columns_keep_their_types(column: Any, expected: str) -> None:
    table = pd.DataFrame({"it": column})
    logged = log_model(DummyRegressor().fit(table, [1.0, 2.0]), table)
    assert str(read(logged).signature.inputs.inputs) == f"['it': {expected}]"


def test_example_contains_the_first_rows() -> None:
    served = mlflow.pyfunc.load_model(log_model(DummyRegressor().fit(TABLE, [1, 2, 3, 4]), TABLE).uri)
    pd.testing.assert_frame_equal(served.input_example, TABLE)
    assert served.predict(served.input_example).tolist() == [2.5] * 4


@pytest.mark.parametrize(
    ("target", "options", "classes"),
    [
        ([0, 1, 0, 1], ["no", "yes"], ["no", "yes"]),
        ([0, 1, 0, 1], np.array(["no", "yes"]), ["no", "yes"]),
        ([3, 7, 3, 7], None, ["3", "7"]),
        (["no", "yes", "no", "yes"], None, ["no", "yes"]),
        ([False, True, False, True], None, ["False", "True"]),
    ],
)
def test_classifier_is_logged_with_probabilities(target: list[Any], options: Any, classes: list[str]) -> None:
    logged = log_model(DummyClassifier().fit(TABLE, target), TABLE, classes=options)
    assert serving(logged) == {"task": "classification", "classes": classes}
    assert mlflow.pyfunc.load_model(logged.uri).predict(TABLE).shape == (4, 2)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([0, 1, 0, 1], {"task": "classification", "classes": ["0", "1"]}),
        (["no", "yes", "no", "yes"], {"task": "classification", "classes": ["no", "yes"]}),
        # 3 and 7 would look like indexes into a list of classes.
        ([3, 7, 3, 7], {}),
    ],
)
def test_classifier_without_probabilities_is_logged_with_predict(
    target: list[Any], expected: dict[str, Any]
) -> None:
    logged = log_model(LinearSVC().fit(TABLE, target), TABLE)
    assert serving(logged) == expected
    assert mlflow.pyfunc.load_model(logged.uri).predict(TABLE).shape == (4,)


@pytest.mark.parametrize("model", [OneClassSVM(), GaussianMixture(2, init_params="random")], ids=repr)
def test_other_models_have_no_task(model: Any) -> None:
    logged = log_model(model.fit(TABLE), TABLE)
    assert serving(logged) == {}
    assert mlflow.pyfunc.load_model(logged.uri).predict(TABLE).shape == (4,)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"task": "regression"}, {"task": "regression"}),
        (
            {"task": "classification", "classes": ["a", "b"]},
            {"task": "classification", "classes": ["a", "b"]},
        ),
    ],
)
def test_task_of_other_objects_is_an_argument(options: dict[str, Any], expected: dict[str, Any]) -> None:
    logged = log_model(Doubling(), TABLE, serialization_format="cloudpickle", **options)
    assert serving(logged) == expected
    assert mlflow.pyfunc.load_model(logged.uri).predict(TABLE).tolist() == [40, 60, 80, 100]


class Doubling:
    def predict(self, table: Any) -> Any:
        return table["age"].to_numpy() * 2


def test_column_keywords_are_stored_as_builtin_values() -> None:
    inputs = {
        "age": {"minimum": np.int64(0), "maximum": 120, "unit": "years"},
        "weight": {"enum": np.array([60.0, 70.0]), "examples": (60.0,), "title": "Weight"},
    }
    logged = log_model(DummyRegressor().fit(TABLE, [1, 2, 3, 4]), TABLE, inputs=inputs)
    assert serving(logged)["inputs"] == {
        "age": {"minimum": 0, "maximum": 120, "unit": "years"},
        "weight": {"enum": [60.0, 70.0], "examples": [60.0], "title": "Weight"},
    }


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"aeg": {"minimum": 0}}, "there is no column 'aeg': use age, name"),
        ({"age": {"min": 0}}, "'min' does not apply to 'age', a double: use .*minimum"),
        ({"age": {"minLength": 1}}, "'minLength' does not apply to 'age', a double"),
        ({"name": {"minimum": 1}}, "'minimum' does not apply to 'name', a string: use .*pattern"),
        ({"age": {"minimum": "0"}}, "'minimum' of 'age' is '0', but must be of type int or float"),
        ({"age": {"minimum": True}}, "'minimum' of 'age' is True"),
        ({"name": {"maxLength": 1.5}}, "'maxLength' of 'name' is 1.5, but must be of type int"),
        ({"name": {"enum": "a"}}, "'enum' of 'name' is 'a', but must be of type list or tuple"),
        ({"age": {"description": 1}}, "'description' of 'age' is 1, but must be of type str"),
    ],
)
def test_keywords_that_do_not_apply_are_rejected(inputs: Any, message: str) -> None:
    table = pd.DataFrame({"age": [1.0, 2.0], "name": ["a", "b"]})
    with pytest.raises(ValueError, match=message):
        log_model(DummyRegressor().fit(table, [1, 2]), table, inputs=inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "clustering"}, "the task is 'clustering': use classification or regression"),
        ({"task": "classification"}, "has no classes_"),
    ],
)
def test_unsuitable_task_is_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_model(Doubling(), TABLE, **options)


def test_wrong_number_of_class_names_is_rejected() -> None:
    model = DummyClassifier().fit(TABLE, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="3 class names for a model of 2 classes"):
        log_model(model, TABLE, classes=["a", "b", "c"])


def test_classifier_with_several_outputs_is_rejected() -> None:
    several = MultiOutputClassifier(LogisticRegression()).fit(TABLE, [[0, 1], [1, 0], [0, 1], [1, 1]])
    with pytest.raises(ValueError, match="several outputs"):
        log_model(several, TABLE)


@pytest.mark.parametrize("table", [TABLE.to_numpy(), pd.DataFrame(TABLE.to_numpy())])
def test_table_without_column_names_is_rejected(table: Any) -> None:
    with pytest.raises(ValueError, match="columns have names"):
        log_model(DummyRegressor().fit(table, [1, 2, 3, 4]), table)


def test_untyped_column_is_rejected() -> None:
    table = pd.DataFrame({"age": [1.0, 2.0], "odd": pd.Series([1, "a"], dtype=object)})
    with pytest.raises(ValueError, match=r"age \(float64\), odd \(object\)"):
        log_model(DummyRegressor().fit(table, [1, 2]), table)


def test_integer_columns_log_no_warning() -> None:
    table = pd.DataFrame({"count": [1, 2]})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log_model(DummyRegressor().fit(table, [1, 2]), table)
    assert not [warning for warning in caught if "integer column" in str(warning.message)]


def test_further_options_are_passed_to_mlflow() -> None:
    logged = log_model(
        DummyRegressor().fit(TABLE, [1, 2, 3, 4]),
        TABLE,
        metadata={"team": "ages"},
        pip_requirements=["scikit-learn"],
    )
    folder = Path(mlflow.artifacts.download_artifacts(logged.uri))
    assert read(logged).metadata == {"serving": {"task": "regression"}, "team": "ages"}
    assert "pandas" not in (folder / "requirements.txt").read_text()


def test_requirements_include_all_parts() -> None:
    pipeline = make_pipeline(FunctionTransformer(yaml_like), LogisticRegression())
    plain = pinned(LogisticRegression())
    assert f"scikit-learn=={version('scikit-learn')}" in plain
    assert set(pinned(pipeline)) - set(plain) == {f"PyYAML=={version('PyYAML')}"}


def yaml_like(table: Any) -> Any:
    return table


yaml_like.__module__ = "yaml.loader"


def test_labels_of_the_training_are_logged_as_names() -> None:
    model = GridSearchCV(DummyClassifier(), {"strategy": ["prior"]}, cv=2).fit(TABLE, [-1, 1, -1, 1])
    trusted = [
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.model_selection._split.StratifiedKFold",
    ]
    logged = log_model(
        model,
        TABLE,
        classes=["neg", "pos"],
        evaluation=(TABLE, [1, 1, -1, -1]),
        skops_trusted_types=trusted,
    )
    (file,) = Path(mlflow.artifacts.download_artifacts(logged.uri)).rglob("serving_evaluation.parquet")
    assert pd.read_parquet(file)["target"].tolist() == ["pos", "pos", "neg", "neg"]
