"""Parsing of a logged model's files, and the errors for the person who logged it."""

from __future__ import annotations

import asyncio
import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import SparkMLVector

from serving.contract import mlmodel, model_files
from serving.contract.model_files import ModelFiles
from serving.errors import Unprocessable
from serving.models import input_example
from serving.processes import pyfunc_input
from serving.promotion_errors import UnsupportedSignature, VerificationFailed
from tests.support.contracts import columns, contract
from tests.support.registry import SCRIPTED_MODEL

CLASSES = ["setosa", "versicolor"]
TENSOR = Schema([TensorSpec(np.dtype("float64"), (-1, 2))])


def read(folder: Path) -> ModelFiles:
    return asyncio.run(model_files.read(folder))


def refusal(**described: Any) -> str:
    with pytest.raises(UnsupportedSignature) as refused:
        mlmodel.contract(described, "iris", 10)
    return str(refused.value)


# -- signatures


@pytest.mark.parametrize("inputs", [None, "[]"], ids=["none", "no columns"])
def test_signature_without_columns_is_rejected_with_advice(inputs: str | None) -> None:
    assert mlmodel.HOW_TO_LOG in refusal(signature={"inputs": inputs, "outputs": None})


def test_numbered_columns_have_text_names_for_clients() -> None:
    parsed = contract(infer_signature(pd.DataFrame(np.zeros((2, 2)))))
    rows = [parsed.read_row(b'{"0": 1.5, "1": 2.5}')]
    frame = pyfunc_input.decode(parsed.layout.encode(rows, "")).data
    pd.testing.assert_frame_equal(frame, pd.DataFrame([[1.5, 2.5]]), check_column_type=False)
    assert [*frame.columns] == [0, 1]


def test_duplicate_input_names_are_rejected() -> None:
    inputs = json.dumps([{"name": 0, "type": "double"}, {"name": "0", "type": "double"}])
    assert "several inputs of one name: 0, 0" in refusal(signature={"inputs": inputs})


@pytest.mark.parametrize("described", [{}, {"signature": None}, {"signature": {}}])
def test_missing_signature_is_rejected_with_advice(described: dict[str, Any]) -> None:
    assert refusal(**described) == f"it has no signature: {mlmodel.HOW_TO_LOG}"


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (Schema([ColSpec(SparkMLVector(), "x")]), "the input 'x' holds a sparkml_vector"),
        (Schema([TensorSpec(np.dtype("complex128"), (-1,))]), "the input 'input' is a tensor of complex128"),
        (Schema([TensorSpec(np.dtype("datetime64[ns]"), (-1,))]), "is a tensor of datetime64"),
        (
            Schema([TensorSpec(np.dtype("float64"), (5, 2))]),
            "has no dimension for rows: its first dimension must be -1",
        ),
        (Schema([TensorSpec(np.dtype("float64"), ())]), "has no dimension for rows"),
    ],
    ids=["vector", "complex", "dates", "fixed", "a number"],
)
def test_unsupported_input_type_is_rejected_with_supported_ones(inputs: Schema, text: str) -> None:
    said = refusal(signature=ModelSignature(inputs).to_dict())
    assert text in said
    assert said.endswith("or of tensors of numbers, booleans or strings")


@pytest.mark.parametrize(
    ("part", "text"),
    [("inputs", "{"), ("inputs", '{"a": 1}'), ("inputs", "[1]"), ("outputs", "nonsense"), ("params", 5)],
)
def test_unreadable_signature_is_rejected(part: str, text: Any) -> None:
    signature = ModelSignature(Schema(columns("x: double"))).to_dict() | {part: text}
    assert refusal(signature=signature).startswith(f"its signature's {part} ")


def test_untyped_parameter_is_rejected() -> None:
    params = [{"name": "key", "type": "binary", "default": "", "shape": None}]
    signature = ModelSignature(Schema(columns("x: double"))).to_dict() | {"params": json.dumps(params)}
    assert refusal(signature=signature).startswith(
        "the parameter 'key' is of type binary: log one of boolean,"
    )


def test_parameter_may_be_an_object() -> None:
    signature = infer_signature(pd.DataFrame({"x": [1.0]}), params={"configurable": {"session_id": "1"}})
    parsed = contract(signature)
    given = {"configurable": {"session_id": "7"}}
    assert parsed.read_params(given) == given
    assert parsed.read_query({"configurable": ['{"session_id": "7"}']}) == given
    with pytest.raises(Unprocessable):
        parsed.read_params({"configurable": {"session_id": 7}})


# -- metadata


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        ({"inputs": {"y": {}}}, "metadata serving.inputs has unknown columns: y"),
        ({"inputs": {5: {}}}, "metadata serving.inputs has unknown columns: 5"),
        ({"inputs": ["x"]}, "its metadata serving.inputs is not a mapping"),
        ({"inputs": "x"}, "its metadata serving.inputs is not a mapping"),
        ({"inputs": {"x": ["minimum"]}}, "its metadata serving.inputs.x is not a mapping"),
        ({"inputs": {"x": 5}}, "its metadata serving.inputs.x is not a mapping"),
        ({"tasks": "regression"}, "metadata serving has unknown entries: tasks"),
        ({"input": {}, 5: 5}, "metadata serving has unknown entries: 5, input"),
        ("regression", "its metadata serving is not a mapping"),
        ({"task": "classify"}, "metadata serving.task is 'classify': write classification or regression"),
        (
            {"task": ["regression"]},
            "metadata serving.task is ['regression']: write classification or regression",
        ),
        (
            {"task": "classification"},
            "its task is classification, but metadata serving.classes names no classes",
        ),
        ({"task": "classification", "classes": "ab"}, "metadata serving.classes is 'ab': write a list of"),
        ({"classes": ["a", "b"]}, "metadata serving.classes has no effect when serving.task is None"),
        ({"task": "classification", "classes": 2}, "metadata serving.classes is 2: write a list of"),
        ({"task": "classification", "classes": ["a", "a"]}, "metadata serving.classes is ['a', 'a']: write"),
        ({"task": "classification", "classes": [1, "1"]}, "metadata serving.classes is [1, '1']: write"),
    ],
    ids=str,
)
def test_invalid_metadata_is_rejected_with_a_reason(serving: Any, said: str) -> None:
    signature = ModelSignature(Schema(columns("x: double")), Schema([ColSpec("long")]))
    result = refusal(signature=signature.to_dict(), metadata={"serving": serving})
    assert result.startswith(said)
    assert "\n" not in result


@pytest.mark.parametrize("metadata", [None, {}, {"serving": None}, {"serving": {}}, {"team": "flowers"}])
def test_metadata_may_be_missing(metadata: Any) -> None:
    signature = ModelSignature(Schema(columns("x: double")), Schema([ColSpec("double")]))
    result = mlmodel.contract({"signature": signature.to_dict(), "metadata": metadata}, "iris", 10)
    assert result.read_row(b'{"x": 1}') == {"x": 1.0}


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (Schema([TensorSpec(np.dtype("float64"), (-1, 3))]), "has 3 columns, .* names 2 classes"),
        (Schema(columns("a: double, b: double, c: double")), "has 3 columns, .* names 2 classes"),
    ],
)
def test_classes_that_mismatch_the_output_are_rejected(outputs: Schema, said: str) -> None:
    with pytest.raises(UnsupportedSignature, match=said):
        contract("x: double", outputs=outputs, task="classification", classes=CLASSES)


@pytest.mark.parametrize(
    "outputs", [Schema(columns("a: double, b: double")), Schema([ColSpec("string")])], ids=["two", "text"]
)
def test_regression_requires_one_number_per_row(outputs: Schema) -> None:
    with pytest.raises(
        UnsupportedSignature, match="its task is regression, but its output signature is not one number"
    ):
        contract("x: double", outputs=outputs, task="regression")


def test_parameters_have_types_and_defaults() -> None:
    parsed = contract(
        "x: double", params=[ParamSpec("top", "long", 3), ParamSpec("stop", "string", ["a"], (-1,))]
    )
    assert [(param.name, param.type, param.default, param.is_list) for param in parsed.params] == [
        ("top", "long", 3, False),
        ("stop", "string", ["a"], True),
    ]


# -- files


@pytest.mark.parametrize(
    "content", [None, b"", b"- a list", b"{", b"\xff\x00", b"a: !!python/object:os.x {}"]
)
def test_invalid_mlmodel_file_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "MLmodel").write_bytes(content)
    with pytest.raises(UnsupportedSignature, match="MLmodel"):
        read(tmp_path)


def save(folder: Path, inputs: str, example: Any, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=SCRIPTED_MODEL,
            signature=ModelSignature(Schema(columns(inputs)), Schema([ColSpec("double")]), **options),
            input_example=example,
            pip_requirements=[],
        )
    return folder / "model"


def example(folder: Path) -> input_example.Example | None:
    files = read(folder)
    return input_example.example(files, mlmodel.contract(files.mlmodel, "actor", 10))


def test_logged_example_is_read_as_typed_rows(tmp_path: Path) -> None:
    at = pd.to_datetime(["2026-01-31 12:30", "2026-02-01 00:00"])
    table = pd.DataFrame(
        {"x": [1, 2.5], "n": [1, 2], "s": ["a", None], "b": [b"\xff", b""], "at": at, "f": [True, False]}
    )
    result = example(
        save(tmp_path, "x: double, n: long, s: string?, b: binary, at: datetime, f: boolean", table)
    )
    assert result is not None
    assert result.rows == [
        {"x": 1.0, "n": 1, "s": "a", "b": b"\xff", "at": at[0].to_pydatetime(), "f": True},
        {"x": 2.5, "n": 2, "s": None, "b": b"", "at": at[1].to_pydatetime(), "f": False},
    ]
    assert json.loads(json.dumps(result.shown)) == result.shown
    assert result.params == {}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("double", [1.5, None]),
        ("string", ["a", None]),
        ("string", pd.Series(["a", None], dtype=object)),
        ("string", pd.Series(["a", np.nan], dtype=object)),
        ("datetime", pd.DatetimeIndex(["2026-01-31", None])),
        ("boolean", pd.Series([True, None], dtype=object)),
        ("binary", [b"a", None]),
    ],
    ids=lambda value: value if isinstance(value, str) else str(getattr(value, "dtype", "list")),
)
def test_missing_values_of_the_example_are_null(tmp_path: Path, kind: str, values: Any) -> None:
    table = pd.DataFrame({"x": [1.0, 2.0], "gap": values})
    result = example(save(tmp_path, f"x: double, gap: {kind}?", table))
    assert result is not None
    assert [row["gap"] is None for row in result.rows] == [False, True]


def test_logged_example_may_have_parameters(tmp_path: Path) -> None:
    params = mlflow.types.ParamSchema([ParamSpec("top", "long", 3)])
    result = example(save(tmp_path, "x: double", (pd.DataFrame({"x": [1.0]}), {"top": 5}), params=params))
    assert result is not None
    assert result.params == {"top": 5}


@pytest.mark.parametrize(
    "rows", [None, pd.DataFrame({"x": pd.Series([], dtype="float64")})], ids=["none", "no rows"]
)
def test_example_without_rows_is_ignored(tmp_path: Path, rows: Any) -> None:
    assert example(save(tmp_path, "x: double", rows)) is None


def test_example_without_file_is_ignored(tmp_path: Path) -> None:
    folder = save(tmp_path, "x: double", pd.DataFrame({"x": [1.0]}))
    (folder / "serving_input_example.json").unlink()
    assert example(folder) is None


def test_long_example_is_truncated(tmp_path: Path) -> None:
    result = example(save(tmp_path, "x: double", pd.DataFrame({"x": np.arange(250.0)})))
    assert result is not None
    assert 1 <= len(result.rows) <= 100


@pytest.mark.parametrize("kind", ["long", "long?"])
def test_missing_integer_in_example_is_rejected_with_advice(kind: str) -> None:
    body = {"dataframe_split": {"columns": ["x", "n"], "data": [[1.0, 1.0], [2.0, None]]}}
    described = {
        "signature": ModelSignature(Schema(columns(f"x: double, n: {kind}"))).to_dict(),
        "saved_input_example_info": {"serving_input_path": "serving_input_example.json"},
    }
    files, parsed = ModelFiles(described, example=body), mlmodel.contract(described, "actor", 10)
    with pytest.raises(VerificationFailed) as refused:
        input_example.example(files, parsed)
    assert str(refused.value).startswith("row 2 of its input example has no value in column 'n'")
    assert "astype('float64')" in str(refused.value)


@pytest.mark.parametrize(
    ("info", "data", "expected"),
    [
        (
            {"type": "dataframe", "pandas_orient": "split"},
            {"columns": ["x", "s"], "data": [[1.5, "a"], [2.5, None]]},
            [{"x": 1.5, "s": "a"}, {"x": 2.5, "s": None}],
        ),
        (
            {"type": "dataframe", "pandas_orient": "split", "params": "true"},
            {"inputs": {"columns": ["x"], "data": [[1.5]]}, "params": {"top": 5}},
            [{"x": 1.5}],
        ),
        ({"type": "json_object"}, {"x": 1.5, "s": "a"}, [{"x": 1.5, "s": "a"}]),
        ({"type": "json_object"}, [{"x": 1.5}, {"x": 2.5}], [{"x": 1.5}, {"x": 2.5}]),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)
def test_example_of_older_mlflow_is_read(info: dict[str, Any], data: Any, expected: list[Any]) -> None:
    signature = ModelSignature(
        Schema(columns("x: double, s: string?")),
        None,
        mlflow.types.ParamSchema([ParamSpec("top", "long", 3)]),
    )
    described = {
        "signature": signature.to_dict(),
        "saved_input_example_info": {"artifact_path": "input_example.json"} | info,
    }
    files = ModelFiles(described, example=data)
    result = input_example.example(files, mlmodel.contract(described, "actor", 10))
    assert result is not None
    assert result.rows == expected
    assert result.params == ({"top": 5} if "params" in info else {})


def test_example_that_mismatches_its_signature_is_rejected(tmp_path: Path) -> None:
    folder = save(tmp_path, "x: double", pd.DataFrame({"x": [1.0]}))
    path = folder / "serving_input_example.json"
    path.write_text(path.read_text().replace("1.0", '"one"'))
    with pytest.raises(VerificationFailed, match="does not fit its own signature: row 1, x: .* number"):
        example(folder)
