"""Models of gradient boosting libraries and of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import infer_signature

from tests.support.model_zoo.entries import Entry, Request, Save, records, table
from tests.support.model_zoo.sklearn_models import HOLES, MEASURES, TOPICS

TARGET = [1.0, 2.5, 3.0, 4.0, 5.5, 6.0]
REQUESTS = (table(HOLES), table(MEASURES[:1]), table(MEASURES[2:4]), records({"width": None, "height": 2.0}))


def _xgboost(folder: Path) -> None:
    import xgboost

    model = xgboost.XGBRegressor(n_estimators=5, max_depth=2, min_child_weight=0).fit(HOLES, TARGET)
    mlflow.xgboost.save_model(model, folder, input_example=HOLES, pip_requirements=[])


def _xgboost_booster(folder: Path) -> None:
    import xgboost

    data = xgboost.DMatrix(MEASURES, label=[0, 1, 2, 0, 1, 2])
    model = xgboost.train(
        {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "min_child_weight": 0}, data, 4
    )
    signature = infer_signature(HOLES, model.predict(data))
    mlflow.xgboost.save_model(model, folder, signature=signature, pip_requirements=[])


def _xgboost_multi_label(folder: Path) -> None:
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=3, max_depth=2, min_child_weight=0).fit(MEASURES, TOPICS)
    mlflow.xgboost.save_model(model, folder, input_example=HOLES, pip_requirements=[])


def _lightgbm(folder: Path) -> None:
    import lightgbm

    model = lightgbm.LGBMClassifier(n_estimators=5, min_child_samples=1, min_data_in_bin=1, verbose=-1)
    model.fit(HOLES, np.array(["a", "b", "c", "a", "b", "c"]))
    mlflow.lightgbm.save_model(model, folder, input_example=HOLES, pip_requirements=[])


def _lightgbm_booster(folder: Path) -> None:
    import lightgbm

    data = lightgbm.Dataset(HOLES, label=TARGET, params={"verbose": -1})
    options = {"objective": "regression", "verbose": -1, "min_data_in_leaf": 1, "min_data_in_bin": 1}
    model = lightgbm.train(options, data, 5)
    signature = infer_signature(HOLES, model.predict(MEASURES))
    mlflow.lightgbm.save_model(model, folder, signature=signature, pip_requirements=[])


def _catboost(classifies: bool) -> Save:
    def save(folder: Path) -> None:
        import catboost

        kind = catboost.CatBoostClassifier if classifies else catboost.CatBoostRegressor
        model = kind(iterations=5, depth=2, verbose=False, allow_writing_files=False)
        model.fit(MEASURES, ["a", "b", "c", "a", "b", "c"] if classifies else TARGET)
        mlflow.catboost.save_model(model, folder, input_example=HOLES, pip_requirements=[])

    return save


def _onnx(folder: Path) -> None:
    from onnx import TensorProto, helper

    def weights(name: str, *shape: int) -> Any:
        return helper.make_tensor(
            name, TensorProto.FLOAT, shape, np.arange(np.prod(shape), dtype=np.float32) / 8
        )

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["measures", "wide"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "two outputs",
        [helper.make_tensor_value_info("measures", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        ],
        [weights("wide", 2, 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    example = {"measures": MEASURES.to_numpy(np.float32)[:2]}
    outputs = {"scores": np.ones((2, 3), np.float32), "label": np.ones(2, np.int64)}
    signature = infer_signature(example, outputs)
    mlflow.onnx.save_model(model, folder, signature=signature, input_example=example, pip_requirements=[])


MATRIX = tuple(
    Request(tuple({"measures": row} for row in rows.to_numpy().tolist()), datatype="FP32")
    for rows in (MEASURES, MEASURES[:1], MEASURES[3:])
)

ENTRIES = {
    "xgboost_regressor": Entry(_xgboost, REQUESTS),
    "xgboost_booster": Entry(_xgboost_booster, REQUESTS),
    "xgboost_multi_label": Entry(_xgboost_multi_label, REQUESTS),
    "lightgbm_classifier": Entry(_lightgbm, REQUESTS),
    "lightgbm_booster": Entry(_lightgbm_booster, REQUESTS),
    "catboost_classifier": Entry(_catboost(True), REQUESTS),
    "catboost_regressor": Entry(_catboost(False), REQUESTS),
    "onnx_two_outputs": Entry(_onnx, MATRIX),
}
