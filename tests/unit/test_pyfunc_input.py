"""Tables between the processes: pyfunc accepts valid rows unchanged, and outputs are returned unchanged."""

from __future__ import annotations

import base64
import json
import warnings
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models.utils import _enforce_params_schema, _enforce_schema
from mlflow.types import ParamSchema, ParamSpec, Schema
from pydantic import BaseModel

from serving.codecs import model_output
from serving.codecs.model_output import OutputForm
from serving.contract.contract import Contract
from serving.errors import ModelFailed, Unprocessable
from serving.processes import pyfunc_input
from serving.types.nested import to_python
from serving.types.scalars import FLOAT32_MAX
from tests.support.contracts import TYPES, columns, contract


class Point(BaseModel):
    x: int


NUMBER_EDGES = [0.0, -0.0, 5e-324, 0.1, 16777217.0]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), 2**31 - 1]),
    "long": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1]),
    "float": st.floats(-FLOAT32_MAX, FLOAT32_MAX) | st.sampled_from([*NUMBER_EDGES, FLOAT32_MAX]),
    "double": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    "string": st.text(max_size=8) | st.sampled_from(["", "nan", "None", "null", "1.5", "\0", "😀"]),
    "binary": st.binary(max_size=8).map(lambda value: base64.b64encode(value).decode()),
    "datetime": st.datetimes(datetime.fromisoformat("1678-01-01"), datetime.fromisoformat("2261-12-31")).map(
        datetime.isoformat
    ),
}
SPEC = ", ".join(f"{mark}{kind}: {kind}{'?' * mark}" for kind in TYPES for mark in (0, 1))


def rows_of(kinds: dict[str, tuple[str, bool]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {name: VALUES[kind] for name, (kind, required) in kinds.items() if required},
        optional={
            name: VALUES[kind] if kind in ("integer", "long") else st.none() | VALUES[kind]
            for name, (kind, required) in kinds.items()
            if not required
        },
    )


def enforced(contract_: Contract, rows: list[dict[str, Any]], schema: Schema) -> list[dict[str, Any]]:
    """Return the rows as pyfunc passes them to a model, after they were encoded for the model process."""
    decoded: list[dict[str, Any]] = [{}] * len(rows)
    for _, indices, group in contract_.layout.groups(rows):
        frame, count, params, _ = pyfunc_input.decode(contract_.layout.encode(group, ""))
        assert (count, params) == (len(indices), None)
        for index, row in zip(indices, _enforce_schema(frame, schema).to_dict("records"), strict=True):
            decoded[index] = row
    return decoded


def assert_unchanged(kind: str, sent: Any, received: Any) -> None:
    if sent is None:
        assert pd.isna(received)
    elif kind == "float":
        assert np.float32(received) == np.float32(sent)
    elif kind == "datetime":
        assert pd.Timestamp(received) == pd.Timestamp(sent)
    else:
        assert received == sent
        assert isinstance(received, type(sent))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mark", ["", "?"], ids=["required", "optional"])
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_pyfunc_accepts_valid_values_unchanged(kind: str, mark: str, data: st.DataObject) -> None:
    spec = f"x: double, it: {kind}{mark}"
    contract_, schema = contract(spec), Schema(columns(spec))
    kinds = {"x": ("double", True), "it": (kind, not mark)}
    sent = data.draw(st.lists(rows_of(kinds), min_size=1, max_size=5))
    rows, _ = contract_.read_batch(json.dumps({"rows": sent}).encode())
    for row, received in zip(rows, enforced(contract_, rows, schema), strict=True):
        assert_unchanged(kind, row.get("it"), received.get("it"))


@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_pyfunc_accepts_any_mixture_of_columns(data: st.DataObject) -> None:
    contract_, schema = contract(SPEC), Schema(columns(SPEC))
    kinds = {column.name: (column.type, column.required) for column in contract_.columns}
    sent = data.draw(st.lists(rows_of(kinds), min_size=1, max_size=4))
    rows, _ = contract_.read_batch(json.dumps({"rows": sent}).encode())
    for row, received in zip(rows, enforced(contract_, rows, schema), strict=True):
        for name, (kind, _) in kinds.items():
            assert_unchanged(kind, row.get(name), received.get(name))


PARAMS: list[Any] = [
    ParamSpec("boolean", "boolean", False),
    ParamSpec("integer", "integer", 1),
    ParamSpec("long", "long", 1),
    ParamSpec("float", "float", 0.5),
    ParamSpec("double", "double", 0.5),
    ParamSpec("string", "string", "a"),
    ParamSpec("datetime", "datetime", "2026-01-31"),
]
LISTS: list[Any] = [
    ParamSpec(f"{param.name}s", param.dtype.name, [param.default], (-1,))
    for param in PARAMS
    if param.name != "datetime"
]


@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_pyfunc_accepts_valid_parameters(data: st.DataObject) -> None:
    params = [*PARAMS, *LISTS]
    contract_, schema = contract("x: double", params=params), ParamSchema(params)
    values = {
        param.name: VALUES[param.dtype.name] if param.shape is None else st.lists(VALUES[param.dtype.name])
        for param in params
    }
    sent = data.draw(st.fixed_dictionaries({}, optional=values))
    rows, taken = contract_.read_batch(json.dumps({"rows": [{"x": 1}], "params": sent}).encode())
    text = json.dumps(taken, sort_keys=True, default=str) if taken else ""
    decoded_params = pyfunc_input.decode(contract_.layout.encode(rows, text)).params
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _enforce_params_schema(decoded_params, schema)
    for name, value in taken.items():
        if name == "datetime":
            assert pd.Timestamp(found[name]) == pd.Timestamp(value)
        else:
            assert found[name] == value


def test_rows_without_integer_column_are_separated_if_allowed() -> None:
    layout = contract("n: long?").layout
    rows: list[dict[str, Any]] = [{"n": 1}, {}, {"n": 0}]
    groups = [([*indices], group) for _, indices, group in layout.groups(rows)]
    assert groups == [([0, 2], [{"n": 1}, {"n": 0}]), ([1], [{}])]
    with pytest.raises(Unprocessable) as refused:
        [*layout.groups(rows, split=False)]
    assert "send it in all rows or in none" in refused.value.faults[0].msg


def frame(spec: str, rows: Any) -> pd.DataFrame:
    """Return the DataFrame of a model process for these rows."""
    layout = contract(spec).layout
    ((_, _, group),) = layout.groups(rows)
    return pyfunc_input.decode(layout.encode(group, "")).data


@pytest.mark.parametrize("kind", ["string", "double", "boolean", "binary", "datetime"])
def test_absent_and_null_match_dataframe_of_the_rows(kind: str) -> None:
    value = {
        "string": "kg",
        "double": 2.5,
        "boolean": True,
        "binary": b"a",
        "datetime": pd.Timestamp("2026-01-31"),
    }[kind]
    for rows in ([{"x": 1.0}], [{"x": 1.0, "it": value}], [{"x": 1.0}, {"x": 2.0, "it": value}]):
        expected = pd.DataFrame(rows)
        decoded = frame(f"x: double, it: {kind}?", rows)
        if kind == "datetime" and "it" in expected:
            expected["it"] = expected["it"].astype("datetime64[ns]")
        pd.testing.assert_frame_equal(decoded, expected)
    assert "it" not in frame(f"x: double, it: {kind}?", [{"x": 1.0}])
    (missing,) = frame(f"x: double, it: {kind}?", [{"x": 1.0, "it": None}])["it"]
    assert missing is None if kind in ("string", "boolean", "binary") else pd.isna(missing)


def test_requests_share_table_only_with_equal_dtypes() -> None:
    layout = contract("x: double, s: string?, b: boolean?").layout
    requests: list[dict[str, Any]] = [
        {"x": 1.0},
        {"x": 1.0, "s": None},
        {"x": 1.0, "s": "kg"},
        {"x": 1.0, "b": True},
        {"x": 1.0, "b": None},
    ]
    likenesses = {next(layout.groups([row]))[0] for row in requests}
    assert len(likenesses) == len(requests)


@pytest.mark.parametrize(
    ("kind", "value"), [("integer", 2**31), ("double", "one"), ("string", 5), ("long", 2**63), ("boolean", 2)]
)
def test_invalid_value_cannot_be_encoded(kind: str, value: Any) -> None:
    with pytest.raises(ModelFailed):
        contract(f"it: {kind}").layout.encode([{"it": value}], "")


# -- outputs


@pytest.mark.parametrize(
    ("answer", "columns_", "rows"),
    [
        (np.array([1.5, 2.5]), ["0"], [[1.5], [2.5]]),
        (np.array([1, 2]), ["0"], [[1], [2]]),
        (np.array(["a", "b"]), ["0"], [["a"], ["b"]]),
        (np.array(["a", None], dtype=object), ["0"], [["a"], [None]]),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), ["0"], [[[1.0, 2.0]], [[3.0, 4.0]]]),
        (np.array([[1.0, 2.0], [3.0, 4.0]]).T, ["0"], [[[1.0, 3.0]], [[2.0, 4.0]]]),
        (np.arange(8).reshape(2, 2, 2), ["0"], [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]),
        (pd.Series([True, False]), ["0"], [[True], [False]]),
        (pd.Series([1.5], name="y"), ["y"], [[1.5]]),
        (["a", "b"], ["0"], [["a"], ["b"]]),
        ([1, 2.5], ["0"], [[1.0], [2.5]]),
        ((1, 2), ["0"], [[1], [2]]),
        ([[1], [2, 3]], ["0"], [[[1]], [[2, 3]]]),
        (pd.DataFrame({"a": [1, 2], 5: ["x", "y"]}), ["a", "5"], [[1, "x"], [2, "y"]]),
        (pd.DataFrame({"a": [1.0, 2.0]}, index=[7, 7]), ["a"], [[1.0], [2.0]]),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["a", "a"], [[1, 2]]),
        (np.zeros((0, 3)), ["0"], []),
        ([], ["0"], []),
        ({"a": [1, 2], "b": np.array([[1], [2]])}, ["0"], [[{"a": [1, 2], "b": [[1], [2]]}]]),
        (
            [{"a": 1}, None, {"b": [np.float64(1.5), pd.Timestamp(0)]}],
            ["0"],
            [
                [{"a": 1}],
                [None],
                [{"b": [1.5, "1970-01-01T00:00:00"]}],
            ],
        ),
        ([1, "a"], ["0"], [[1], ["a"]]),
        (pd.Series([[1], (2, 3), np.nan]), ["0"], [[[1]], [[2, 3]], [None]]),
        ([Point(x=1)], ["0"], [[{"x": 1}]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_output_round_trips(answer: Any, columns_: list[str], rows: list[Any]) -> None:
    decoded = model_output.decode(model_output.encode(answer, len(rows)))
    assert decoded.schema.names == columns_
    assert [list(row) for row in zip(*map(to_python, decoded.columns), strict=True)] == rows


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (np.array([1]), OutputForm.VALUES),
        ([1], OutputForm.VALUES),
        (pd.DataFrame({"a": [1]}), OutputForm.RECORDS),
        (pd.Series([1]), OutputForm.RECORDS),
        ({"a": [1]}, OutputForm.WHOLE),
        ({"a": [1, 2]}, OutputForm.WHOLE),
        ({"a": 1}, OutputForm.WHOLE),
        ({}, OutputForm.WHOLE),
        (5, OutputForm.WHOLE),
        (None, OutputForm.WHOLE),
        ("text", OutputForm.WHOLE),
        (np.float64(1), OutputForm.WHOLE),
    ],
    ids=str,
)
def test_output_format_round_trips(answer: Any, form: OutputForm) -> None:
    assert model_output.form(model_output.decode(model_output.encode(answer, 1))) is form


SCALARS = [{"name": "a", "type": "string"}, {"name": "b", "type": "double"}]
ARRAYS = [{"name": "a", "type": "array", "items": {"type": "string"}}]
TENSORS = [{"name": "a", "type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]


@pytest.mark.parametrize("rows", [1, 2, 3], ids="{} rows".format)
@pytest.mark.parametrize(
    ("outputs", "answer", "form"),
    [
        (SCALARS, {"a": ["x", "y"], "b": [1.0, 2.0]}, OutputForm.COLUMNS),
        (SCALARS, {"a": ["x", "y"], "b": np.array([1.0, 2.0])}, OutputForm.COLUMNS),
        (SCALARS, {"a": "x", "b": 1.0}, OutputForm.WHOLE),
        (SCALARS, {"a": ["x", "y"], "b": [1.0]}, OutputForm.WHOLE),
        (SCALARS, {"a": ["x", "y"]}, OutputForm.WHOLE),
        (ARRAYS, {"a": ["x", "y"]}, OutputForm.WHOLE),
        (ARRAYS, {"a": [["x"], ["y", "z"]]}, OutputForm.COLUMNS),
        (ARRAYS, {"a": []}, OutputForm.WHOLE),
        (TENSORS, {"a": np.zeros((2, 2))}, OutputForm.COLUMNS),
        (TENSORS, {"a": np.zeros(2)}, OutputForm.WHOLE),
        ([], {"a": np.zeros(2)}, OutputForm.WHOLE),
        (ARRAYS, ["x", "y"], OutputForm.WHOLE),
        (ARRAYS, [["x"], ["y", "z"]], OutputForm.VALUES),
        ([{"type": "array", "items": {"type": "string"}}], ["x", "y"], OutputForm.WHOLE),
        ([{"type": "string"}], ["x", "y"], OutputForm.VALUES),
        (TENSORS, [[1.0, 2.0]], OutputForm.VALUES),
        (TENSORS, [1.0, 2.0], OutputForm.VALUES),
        ([], ["x", "y"], OutputForm.VALUES),
    ],
    ids=str,
)
def test_declared_depth_decides_whether_dict_is_columnar(
    outputs: list[dict[str, Any]], answer: Any, form: OutputForm, rows: int
) -> None:
    declared = model_output.depths(outputs)
    assert model_output.form(model_output.decode(model_output.encode(answer, rows, declared))) is form


@pytest.mark.parametrize(
    "answer",
    [object(), [object()], iter([1]), {1, 2}, [{"a": {1}}]],
    ids=lambda it: type(it).__name__,
)
def test_output_that_json_cannot_represent_is_rejected(answer: Any) -> None:
    with pytest.raises(TypeError, match=f"its output of type {type(answer).__name__} cannot be encoded"):
        model_output.encode(answer, 1)


@given(st.binary(max_size=64) | st.binary(max_size=8).map(model_output.encode([1.5], 1).__add__))
def test_arbitrary_bytes_decode_or_are_rejected(stream: bytes) -> None:
    with suppress(ModelFailed):
        assert isinstance(model_output.decode(stream), pa.RecordBatch)


@given(st.data())
def test_altered_output_decodes_or_is_rejected(data: st.DataObject) -> None:
    stream = bytearray(model_output.encode(pd.DataFrame({"a": ["x", "yy"], "b": [1.5, 2.5]}), 2))
    for place in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=3)):
        stream[place] ^= data.draw(st.integers(1, 255))
    with suppress(ModelFailed):
        model_output.decode(bytes(stream[: data.draw(st.integers(0, len(stream)))]))
