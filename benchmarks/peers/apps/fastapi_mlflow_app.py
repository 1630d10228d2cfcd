"""fastapi-mlflow: an application generated from the model's signature."""

import os
from typing import Any

import mlflow.pyfunc
import pandas as pd
from fastapi import FastAPI
from fastapi_mlflow.applications import build_app
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

CLASSES = ("setosa", "versicolor", "virginica")


class Named:
    """The model with one output column per class: fastapi-mlflow has no type for a matrix."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.metadata = model.metadata
        outputs = Schema([ColSpec("double", name) for name in CLASSES])
        self.metadata.signature = ModelSignature(model.metadata.signature.inputs, outputs)

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return one column of probabilities per class."""
        return pd.DataFrame(self.model.predict(table), columns=list(CLASSES))


def create_app() -> FastAPI:
    """Create the application; for uvicorn's `--factory`."""
    return build_app(Named(mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])))
