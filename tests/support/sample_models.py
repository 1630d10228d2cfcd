"""Models with every kind of signature, as users log them, and rows for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import onnx
import pandas as pd
import xgboost
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property
from onnx import TensorProto, helper
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

PARTS = Path(__file__).with_name("code_models.py")
IRIS = pd.DataFrame(load_iris().data, columns=["sepal_length", "sepal_width", "petal_length", "petal_width"])
HOUSES = pd.DataFrame(
    {
        "city": ["Bonn", "Köln", "Bonn", "Trier"],
        "garden": [True, False, False, True],
        "rooms": np.array([3, 2, 5, 4], np.int64),
        "area": [80.5, 41.0, 120.0, 99.5],
        "built": np.array(["1999-05-01", "1965-01-31", "2020-12-24T10:30", "1980-02-29"], "datetime64[ns]"),
    }
)
Save = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class SampleModel:
    """A model: the function that saves it, and a row for `/predict` with its prediction."""

    save: Save
    row: Mapping[str, Any]


def _saved(flavor: Any, model: Any, inputs: Any, outputs: Any, **more: Any) -> Save:
    def save(folder: Path) -> None:
        signature = infer_signature(inputs, outputs)
        flavor.save_model(
            model, folder, signature=signature, input_example=inputs[:3], pip_requirements=[], **more
        )

    return save


def _classifier() -> Save:
    model = LogisticRegression(max_iter=500).fit(IRIS, load_iris().target)
    chances = model.predict_proba(IRIS)
    return _saved(mlflow.sklearn, model, IRIS, chances, pyfunc_predict_fn="predict_proba")


def _pipeline() -> Save:
    columns = ColumnTransformer(
        [
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("built", FunctionTransformer(lambda built: built.apply(lambda days: days.dt.year)), ["built"]),
            ("plain", "passthrough", ["garden", "rooms", "area"]),
        ]
    )
    model = make_pipeline(columns, Ridge()).fit(HOUSES, [300.0, 120.0, 700.0, 410.0])
    more = {
        "serialization_format": "cloudpickle",
        "metadata": {"serving": {"inputs": {"area": {"minimum": 0, "maximum": 100_000, "unit": "m²"}}}},
    }
    return _saved(mlflow.sklearn, model, HOUSES, model.predict(HOUSES), **more)


def _boosted() -> Save:
    model = xgboost.XGBRegressor(n_estimators=5).fit(IRIS, load_iris().target)
    return _saved(mlflow.xgboost, model, IRIS, model.predict(IRIS))


def _light() -> Save:
    holey = IRIS.assign(petal_width=IRIS["petal_width"].where(IRIS.index % 3 > 0))
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(holey, load_iris().target)
    return _saved(mlflow.lightgbm, model, holey, model.predict(holey))


def _network() -> Save:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.arange(8, dtype=np.float32) / 8)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 4), "x")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, 2), "y")]),
    )

    def save(folder: Path) -> None:
        example = {"x": IRIS.to_numpy(np.float32)[:2]}
        mlflow.onnx.save_model(model, folder, signature=signature, input_example=example, pip_requirements=[])

    return save


def _coded(
    part: str, inputs: Schema | None, outputs: Schema | None, example: Any, params: Any = None
) -> Save:
    """Return a model from code (see `parts.py`); without a schema, its type hints are its signature."""
    schema: Any = ParamSchema(params) if params else None
    signature = inputs and ModelSignature(inputs, outputs, schema)

    def save(folder: Path) -> None:
        mlflow.pyfunc.save_model(
            folder,
            python_model=PARTS,
            signature=signature,
            input_example=example,
            pip_requirements=[],
            model_config={"part": part},
        )

    return save


@cache
def sample_models() -> dict[str, SampleModel]:
    """Return all models by name."""
    flower: dict[str, Any] = {str(name): value for name, value in IRIS.iloc[0].items()}
    house = {"city": "Bonn", "garden": True, "rooms": 3, "area": 80.5, "built": "1999-05-01T00:00:00"}
    return {
        "classifier": SampleModel(_classifier(), flower),
        "pipeline": SampleModel(_pipeline(), house),
        "xgboost": SampleModel(_boosted(), flower),
        "lightgbm": SampleModel(_light(), flower | {"petal_width": None}),
        "onnx": SampleModel(_network(), {"x": [5.1, 3.5, 1.4, 0.2]}),
        "nested": SampleModel(_nested(), {"v": [1, 2.5], "o": {"a": 1}, "m": {"k": 5}}),
        "arrays": SampleModel(_arrays(), {"image": [[1, 2], [3, 255]], "words": ["a", "b"]}),
        "texts": SampleModel(_texts(), {"input": "abc"}),
        "frame": SampleModel(_frame(), {"x": 5}),
        "whole": SampleModel(_whole(), {"x": 5}),
        "hinted": SampleModel(
            _hinted(), {"input": {"role": "user", "content": "hi", "at": "2026-01-31T10:00:00"}}
        ),
        "optional": SampleModel(_optional(), {"x": 5}),
    }


def _nested() -> Save:
    inputs = Schema(
        [
            ColSpec(Array("double"), "v"),
            ColSpec(Object([Property("a", "double"), Property("at", "datetime", required=False)]), "o"),
            ColSpec(Map("long"), "m", required=False),
        ]
    )
    told = Object([Property("sum", "double"), Property("told", "string"), Property("v", Array("double"))])
    example = pd.DataFrame({"v": [[1.0, 2.0]], "o": [{"a": 1.5}], "m": [{"k": 1}]})
    return _coded("nested", inputs, Schema([ColSpec(told)]), example)


def _arrays() -> Save:
    inputs = Schema(
        [TensorSpec(np.dtype("uint8"), (-1, -1, 2), "image"), TensorSpec(np.dtype("str"), (-1, 2), "words")]
    )
    outputs = Schema(
        [
            TensorSpec(np.dtype("float64"), (-1,), "mean"),
            TensorSpec(np.dtype("float32"), (-1, -1, 2), "twice"),
            TensorSpec(np.dtype("str"), (-1,), "words"),
        ]
    )
    example = {"image": np.ones((1, 2, 2), np.uint8), "words": np.array([["a", "b"]])}
    return _coded("arrays", inputs, outputs, example)


def _texts() -> Save:
    params = [ParamSpec("times", "long", 1)]
    return _coded("texts", Schema([ColSpec("string")]), Schema([ColSpec("string")]), ["a", "b"], params)


def _frame() -> Save:
    outputs = Schema(
        [
            ColSpec("double", "half"),
            ColSpec("double", "gap", required=False),
            ColSpec("string", "note", required=False),
            ColSpec("datetime", "at"),
            ColSpec("long", "whole"),
            ColSpec("boolean", "is_large"),
        ]
    )
    return _coded("frame", Schema([ColSpec("double", "x")]), outputs, pd.DataFrame({"x": [1.0, -1.0]}))


def _whole() -> Save:
    return _coded(
        "whole", Schema([ColSpec("double", "x")]), Schema([ColSpec(AnyType())]), pd.DataFrame({"x": [1.0]})
    )


def _hinted() -> Save:
    return _coded("hinted", None, None, [{"role": "user", "content": "hello"}])


def _optional() -> Save:
    types = {"x": "double", "note": "string", "count": "long"}
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(type_, name, required=False) for name, type_ in types.items()
    ]
    example = pd.DataFrame({"x": [1.0], "note": ["a"], "count": [1]})
    return _coded("optional", Schema(columns), Schema([ColSpec("long")]), example)
