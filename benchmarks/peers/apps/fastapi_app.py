"""FastAPI: a typed row, predict in a plain `def` route, which FastAPI runs in a thread."""

import os
from typing import Any

import mlflow.pyfunc
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel


class Row(BaseModel):
    """Measurements of one flower, in cm."""

    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


class Answer(BaseModel):
    """Probabilities of each row."""

    predictions: list[list[float]]


def create_app() -> FastAPI:
    """Create the application; for uvicorn's `--factory`."""
    app = FastAPI()
    model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    @app.post("/predict")
    def predict(row: Row) -> Answer:
        return Answer(predictions=model.predict(pd.DataFrame([row.model_dump()])).tolist())

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {}

    return app
