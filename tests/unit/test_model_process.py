"""The model process calls a model as pyfunc does, with or without a second check of the signature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.models.utils import _enforce_schema
from mlflow.types import ParamSpec, Schema

from serving.processes import model_process, pyfunc_input
from tests.support.contracts import TYPES, columns, contract
from tests.support.registry import quiet, save_scripted_model
from tests.unit.test_pyfunc_input import rows_of

SPEC = ", ".join(f"{mark or 'r'} {kind}: {kind}{mark}" for kind in TYPES for mark in ("", "?"))
KINDS = {f"{mark or 'r'} {kind}": (kind, not mark) for kind in TYPES for mark in ("", "?")}
ALL = contract(SPEC)
DOUBLES = "a: double, b: double, c: double"


def frames(spec: str, rows: list[dict[str, Any]]) -> list[pd.DataFrame]:
    """Return the DataFrames that a model process decodes from rows."""
    contract_ = contract(spec)
    return [
        pyfunc_input.decode(contract_.layout.encode(group, ""))[0]
        for _, _, group in contract_.layout.groups(rows)
    ]


@given(sent=st.lists(rows_of(KINDS), min_size=1, max_size=4))
def test_pyfunc_enforcement_does_not_change_a_table(sent: list[dict[str, Any]]) -> None:
    rows, _ = ALL.read_batch(json.dumps({"rows": sent}).encode())
    for frame in frames(SPEC, rows):
        enforced = _enforce_schema(frame, Schema(columns(SPEC)))
        pd.testing.assert_frame_equal(frame, enforced, check_exact=True)


@pytest.mark.parametrize("kind", ["integer", "long", "float", "double"])
def test_numbers_have_pyfunc_memory_layout(kind: str) -> None:
    spec = f"a: {kind}, b: {kind}, c: {kind}"
    (frame,) = frames(spec, [{"a": 1, "b": 2, "c": 3}, {"a": 4, "b": 5, "c": 6}])
    enforced = _enforce_schema(frame, Schema(columns(spec)))
    assert frame.to_numpy().flags.f_contiguous == enforced.to_numpy().flags.f_contiguous
    pd.testing.assert_frame_equal(frame, enforced, check_exact=True)


@given(data=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=40))
def test_predictions_are_bit_identical(
    predicts: dict[bool, model_process.Predict], data: list[list[float]]
) -> None:
    rows = [dict(zip("abc", row, strict=True)) for row in data]
    (frame,) = frames(DOUBLES, rows)
    once, twice = (predicts[enforce](frame, None) for enforce in (False, True))
    np.testing.assert_array_equal(once, twice, strict=True)


@pytest.fixture(scope="module")
def predicts(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, model_process.Predict]:
    """Return a pipeline's predict functions with and without pyfunc's enforcement."""
    import mlflow.sklearn
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs, inputs["a"] > inputs["b"])
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    with quiet():
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(inputs, model.predict_proba(inputs)),
            pyfunc_predict_fn="predict_proba",
            pip_requirements=[],
        )
    return {enforce: model_process.load(folder, enforce=enforce).predict for enforce in (False, True)}


@pytest.mark.parametrize("enforce", [False, True])
def test_parameters_have_defaults_and_types(tmp_path: Path, enforce: bool) -> None:
    params = [ParamSpec("factor", "double", 3.0)]
    predict = model_process.load(save_scripted_model(tmp_path, params=params), enforce=enforce).predict
    frame = pd.DataFrame({"x": [1.0]})
    assert list(predict(frame, None)) == [3.0]
    assert list(predict(frame, {"factor": 5})) == [5.0]
