"""Outputs of models as predictions for clients."""

from __future__ import annotations

import datetime as dt
import json
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import Array
from pydantic import TypeAdapter

from serving.codecs import model_output
from serving.codecs.output_json import NOT_FINITE
from serving.contract.contract import Contract
from serving.errors import ModelFailed
from tests.support.contracts import TYPES, columns, contract

CLASSES = ["setosa", "versicolor", "virginica"]
FLOATS = Schema([TensorSpec(np.dtype("float64"), (-1,))])


def one(kind: str, required: bool = True, name: str | None = None) -> Schema:
    return Schema([ColSpec(kind, name if required else "y", required)])


def tensor(dtype: str, *shape: int) -> Schema:
    return Schema([TensorSpec(np.dtype(dtype), (-1, *shape))])


def contract_for(outputs: Schema | None = None, **serving: Any) -> Contract:
    return contract("x: double", outputs=outputs, **serving)


def classifier(outputs: Schema) -> Contract:
    return contract_for(outputs, task="classification", classes=CLASSES)


def predictions(model_contract: Contract, output: Any) -> list[Any]:
    return read(model_contract, model_output.decode(model_output.encode(output, 0)))


def read(model_contract: Contract, table: pa.RecordBatch) -> list[Any]:
    """Return the predictions as a client parses them; `NOT_FINITE` for an invalid row."""
    batch = model_contract.predictions(table)
    return [
        NOT_FINITE if row in batch.invalid_rows else json.loads(batch.row_json(row))
        for row in range(len(batch))
    ]


def values(model_contract: Contract, output: Any) -> list[Any]:
    rows = predictions(model_contract, output)
    return [row if row is NOT_FINITE else row["prediction"] for row in rows]


# -- values


@pytest.mark.parametrize(
    ("outputs", "output", "expected"),
    [
        (one("double"), np.array([1.5, 2.5]), [1.5, 2.5]),
        (one("double"), np.array([1, 2]), [1, 2]),
        (one("float"), np.array([1.5], dtype="float32"), [1.5]),
        (one("long"), np.array([2**62]), [2**62]),
        (one("integer"), pd.Series([1], dtype="int32"), [1]),
        (one("boolean"), np.array([True]), [True]),
        (one("string"), ["a", "ж"], ["a", "ж"]),
        (one("string"), np.array(["a", "bb"]), ["a", "bb"]),
        (one("string"), pd.Series(["a"]), ["a"]),
        (one("string"), pd.Series(["a"], dtype=object), ["a"]),
        (one("binary"), [b"\x00\xff"], ["AP8="]),
        (
            one("datetime"),
            pd.Series(pd.to_datetime(["2026-01-31T12:30"])),
            ["2026-01-31T12:30:00"],
        ),
        (one("double", name="price"), pd.DataFrame({"price": [1.5]}), [1.5]),
        (one("double", name="price"), pd.DataFrame({"other": [1.5]}), [1.5]),
        (one("string", required=False), ["a", None], ["a", None]),
        (one("double", required=False), pd.Series([1.5, None]), [1.5, None]),
        (one("binary", required=False), [b"a", None, b""], ["YQ==", None, ""]),
        (FLOATS, np.array([1.5, 2.5]), [1.5, 2.5]),
        (tensor("float64", 2), np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        (tensor("float64", -1), np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        (tensor("int64", 2, 2), np.arange(4).reshape(1, 2, 2), [[[0, 1], [2, 3]]]),
        (tensor("bool", 1), np.array([[True], [False]]), [[True], [False]]),
        (Schema([ColSpec(Array("double"))]), [[1.0], [2.0, 3.0]], [[1.0], [2.0, 3.0]]),
        (
            Schema(columns("low: double, high: double")),
            pd.DataFrame({"high": [2.0], "low": [1.0], "more": ["a"]}),
            [{"low": 1.0, "high": 2.0}],
        ),
    ],
    ids=lambda value: str(getattr(value, "dtypes", value)).replace("\n", " ")[:60],
)
def test_prediction_has_declared_type(outputs: Schema, output: Any, expected: list[Any]) -> None:
    assert values(contract_for(outputs), output) == expected


@pytest.mark.parametrize(
    ("outputs", "output"),
    [
        (one("double"), ["a"]),
        (one("double"), [True]),
        (one("long"), [1.5]),
        (one("boolean"), [1]),
        (one("string"), [1]),
        (one("string"), [b"a"]),
        (one("binary"), ["a"]),
        (one("datetime"), ["2026-01-31"]),
        (one("double"), np.zeros((1, 2))),
        (one("double"), pd.DataFrame({"a": [1.0], "b": [2.0]})),
        (one("double", name="price"), pd.DataFrame({"a": [1.0], "b": [2.0]})),
        (Schema(columns("low: double, high: double")), pd.DataFrame({"low": [1.0], "more": [2.0]})),
        (tensor("float64", 2), np.zeros((1, 3))),
        (tensor("float64", 2), np.zeros(2)),
        (tensor("float64", 2), np.zeros((1, 2, 2))),
        (tensor("float64", 2), [[1.0], [1.0, 2.0, 3.0]]),
        (tensor("int64", 2), np.zeros((1, 2))),
    ],
    ids=lambda value: str(getattr(value, "dtypes", value)).replace("\n", " ")[:60],
)
def test_output_that_violates_signature_fails(outputs: Schema, output: Any) -> None:
    with pytest.raises(ModelFailed):
        predictions(contract_for(outputs), output)


# -- values that JSON cannot represent

BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", [np.array, list, pd.Series, lambda result: pd.DataFrame({"y": result})])
@pytest.mark.parametrize(
    "model_contract",
    [contract_for(one("double")), contract_for(FLOATS), contract_for(FLOATS, task="regression")],
)
def test_non_finite_number_invalidates_only_its_row(model_contract: Contract, form: Any, bad: float) -> None:
    assert values(model_contract, form([1.0, bad, 3.0])) == [1.0, NOT_FINITE, 3.0]


@pytest.mark.parametrize("bad", BAD)
def test_non_finite_number_invalidates_row_in_any_shape(bad: float) -> None:
    wide = np.array([[1.0, 2.0, 3.0], [1.0, bad, 3.0]])
    assert values(contract_for(tensor("float64", 3)), wide)[1] is NOT_FINITE
    assert values(contract_for(tensor("float64", -1)), wide)[1] is NOT_FINITE
    assert values(contract_for(Schema([ColSpec(Array("double"))])), wide.tolist())[1] is NOT_FINITE
    for outputs in (tensor("float64", 3), Schema(columns("a: double, b: double, c: double"))):
        for form in (wide, pd.DataFrame(wide, columns=CLASSES)):
            assert predictions(classifier(outputs), form)[1] is NOT_FINITE
    named = Schema(columns("a: double, b: string"))
    table = pd.DataFrame({"a": [1.0, bad], "b": ["x", "y"]})
    assert values(contract_for(named), table) == [{"a": 1.0, "b": "x"}, NOT_FINITE]


@pytest.mark.parametrize("kind", TYPES)
def test_missing_number_fails_row_and_other_values_are_null(kind: str) -> None:
    present = {
        "boolean": True,
        "integer": 1,
        "long": 1,
        "float": 1.5,
        "double": 1.5,
        "string": "a",
        "binary": b"a",
        "datetime": pd.Timestamp("2026-01-31"),
    }[kind]
    output = pd.Series([present, None], dtype=object)
    first, second = values(contract_for(one(kind)), output)
    assert first is not NOT_FINITE
    assert second is (NOT_FINITE if kind in ("boolean", "integer", "long", "float", "double") else None)
    assert values(contract_for(one(kind, required=False)), output)[1] is None


def test_any_output_is_valid_without_signature() -> None:
    model_contract = contract_for_anything()
    for output in ([1.5, 2.5], ["a", "b"], [[1], [2, 3]], [[1.5, "a"][:1], []]):
        assert values(model_contract, output) == output


def contract_for_anything() -> Contract:
    from mlflow.models import ModelSignature

    return contract(ModelSignature(Schema(columns("x: double"))))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "form",
    [
        lambda bad: [bad],
        lambda bad: [[1.0, bad]],
        lambda bad: np.array([[1.0, bad]]),
        lambda bad: [{"a": bad}],
        lambda bad: [[{"a": [bad]}]],
        lambda bad: pd.DataFrame({"a": [bad]}),
    ],
)
def test_numbers_must_be_finite_without_signature(form: Any, bad: float) -> None:
    (result,) = predictions(contract_for_anything(), form(bad))
    assert result is NOT_FINITE


@pytest.mark.parametrize(
    "output",
    [
        pa.array([b"\x00\xff"]),
        pa.array([dt.time(12, 30)]),
        pa.array([dt.timedelta(seconds=5)]),
        pa.array([1], pa.decimal128(5, 2)),
        pa.array([dt.datetime(2026, 1, 31)], pa.timestamp("ns")),
        pa.array([1769862600000000001], pa.timestamp("ns")),
        pa.array([{"a": b"\x00"}]),
    ],
    ids=lambda array: str(array.type),
)
def test_any_output_is_json_or_fails(output: pa.Array) -> None:
    batch = pa.RecordBatch.from_arrays([output], names=["0"])
    for model_contract in (contract_for_anything(), contract_for(one("datetime"))):
        with suppress(ModelFailed):
            read(model_contract, batch)


# -- tasks


def test_regressor_returns_number_per_row() -> None:
    for outputs in (FLOATS, one("double"), one("long"), one("double", name="y"), tensor("float64", 1)):
        model_contract = contract_for(outputs, task="regression")
        for output in (np.array([1.5, 2.5]), np.array([[1.5], [2.5]]), pd.DataFrame({"y": [1.5, 2.5]})):
            assert predictions(model_contract, output) == [{"prediction": 1.5}, {"prediction": 2.5}]
        with pytest.raises(ModelFailed):
            predictions(model_contract, ["a"])


def test_probabilities_yield_most_likely_class() -> None:
    chances = np.array([[0.125, 0.5, 0.375], [0.25, 0.25, 0.5], [0.5, 0.5, 0.0]])
    for outputs in (
        tensor("float64", 3),
        tensor("float64", -1),
        Schema(columns("a: double, b: double, c: double")),
    ):
        result = predictions(classifier(outputs), chances)
        assert [(row["prediction"], row["label"], row["confidence"]) for row in result] == [
            (1, "versicolor", 0.5),
            (2, "virginica", 0.5),
            (0, "setosa", 0.5),
        ]
        assert result[0]["probabilities"] == {"setosa": 0.125, "versicolor": 0.5, "virginica": 0.375}


def test_probabilities_are_read_by_name_or_position() -> None:
    model_contract = classifier(Schema(columns("a: double, b: double, c: double")))
    named = pd.DataFrame({"virginica": [0.5], "setosa": [0.25], "versicolor": [0.25]})
    assert predictions(model_contract, named)[0]["label"] == "virginica"
    assert predictions(model_contract, named.set_axis(["a", "b", "c"], axis=1))[0]["label"] == "setosa"


@pytest.mark.parametrize(
    "output", [np.zeros((1, 2)), np.zeros(3), np.zeros((1, 3, 1)), ["setosa"], np.array([["a", "b", "c"]])]
)
def test_missing_class_probability_fails(output: Any) -> None:
    with pytest.raises(ModelFailed):
        predictions(classifier(tensor("float64", 3)), output)


@pytest.mark.parametrize(
    ("outputs", "output"),
    [
        (one("long"), np.array([2, 0])),
        (one("string"), np.array(["virginica", "setosa"])),
        (one("string"), pd.Series(["virginica", "setosa"])),
        (one("string"), pd.Series(["virginica", "setosa"], dtype="category")),
        (tensor("int64"), np.array([2, 0], dtype="int32")),
        (tensor("str"), np.array(["virginica", "setosa"])),
    ],
    ids=["ids", "names", "texts", "categories", "int32", "tensor of texts"],
)
def test_class_labels_yield_ids_and_names(outputs: Schema, output: Any) -> None:
    assert predictions(classifier(outputs), output) == [
        {"prediction": 2, "label": "virginica"},
        {"prediction": 0, "label": "setosa"},
    ]


@pytest.mark.parametrize("output", [[3], [-1], ["rose"], [None], [1.5], [""]])
def test_unlisted_class_fails(output: Any) -> None:
    with pytest.raises(ModelFailed):
        predictions(classifier(one("long")), output)


# -- in general

_ELEMENTS: tuple[st.SearchStrategy[Any], ...] = (
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.datetimes(),
    st.dates(),
    st.lists(st.floats(), max_size=2),
    st.lists(st.integers(0, 9), min_size=2, max_size=2),
    st.fixed_dictionaries({"a": st.floats()}),
)
arrays: st.SearchStrategy[Any] = st.one_of(
    [st.lists(element | st.none(), min_size=1, max_size=3).map(pa.array) for element in _ELEMENTS]
)
CONTRACTS = [
    contract_for_anything(),
    *[contract_for(one(kind)) for kind in TYPES],
    *[contract_for(tensor(dtype, 2)) for dtype in ("float64", "int64", "str")],
    contract_for(FLOATS, task="regression"),
    contract_for(Schema(columns("a: double, b: string?"))),
    classifier(tensor("float64", 3)),
    classifier(one("long")),
    classifier(one("string")),
]


@given(st.sampled_from(CONTRACTS), st.lists(arrays, min_size=1, max_size=3), st.permutations(["a", "b", "c"]))
def test_any_output_is_prediction_per_row_or_fails(
    model_contract: Contract, data: list[pa.Array], names: list[str]
) -> None:
    rows = min(map(len, data))
    batch = pa.RecordBatch.from_arrays([array[:rows] for array in data], names=names[: len(data)])
    with suppress(ModelFailed):
        predicted = model_contract.predictions(batch)
        assert len(predicted) == rows
        for row in set(range(rows)).difference(predicted.invalid_rows):
            orjson.loads(predicted.row_json(row))  # rejects NaN


@pytest.mark.parametrize(
    ("model_contract", "expected"),
    [
        (contract_for(one("long")), {"prediction": {"type": "integer"}}),
        (contract_for(one("double", required=False)), {"prediction": {"type": ["number", "null"]}}),
        (
            contract_for(tensor("float64", 2)),
            {"prediction": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
        ),
        (contract_for(tensor("str", -1)), {"prediction": {"type": "array", "items": {"type": "string"}}}),
        (contract_for_anything(), {"prediction": {}}),
        (contract_for(FLOATS, task="regression"), {"prediction": {"type": "number"}}),
        (
            contract_for(Schema(columns("a: double, b: string"))),
            {
                "prediction": {
                    "type": "object",
                    "properties": {"a": {"type": "number"}, "b": {"type": ["string", "null"]}},
                    "required": ["a", "b"],
                }
            },
        ),
        (
            classifier(one("long")),
            {
                "prediction": {"type": "integer", "minimum": 0, "maximum": 2},
                "label": {"type": "string", "enum": CLASSES},
            },
        ),
        (
            classifier(tensor("float64", 3)),
            {
                "prediction": {"type": "integer", "minimum": 0, "maximum": 2},
                "label": {"type": "string", "enum": CLASSES},
                "confidence": {"type": "number"},
                "probabilities": {
                    "type": "object",
                    "properties": {name: {"type": "number"} for name in CLASSES},
                    "required": CLASSES,
                },
            },
        ),
    ],
    ids=lambda value: value.outputs.description if isinstance(value, Contract) else "",
)
def test_predictions_are_documented(model_contract: Contract, expected: dict[str, Any]) -> None:
    schema = TypeAdapter(model_contract.prediction).json_schema()
    result = {
        name: {key: field[key] for key in field if key != "title"}
        for name, field in schema["properties"].items()
    }
    assert result == expected
    assert schema["required"] == [*expected]
