"""The baseline: a FastAPI endpoint with the types of the service that returns a constant."""

from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

Cm = Annotated[float, Field(gt=0, le=30, allow_inf_nan=False)]


class Row(BaseModel):
    """Measurements of one flower, in cm."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sepal_length: Cm
    sepal_width: Cm
    petal_length: Cm
    petal_width: Cm


class Probabilities(BaseModel):
    """One probability per class."""

    setosa: float
    versicolor: float
    virginica: float


class ModelVersion(BaseModel):
    """Model version in the response."""

    name: str
    version: str


class Answer(BaseModel):
    """Response with the fields of the service's response."""

    prediction: Annotated[int, Field(ge=0, le=2)]
    label: Literal["setosa", "versicolor", "virginica"]
    confidence: float
    probabilities: Probabilities
    model: ModelVersion


def create_app() -> FastAPI:
    """Create the application; for uvicorn's `--factory`."""
    app = FastAPI()
    constant = Answer(
        prediction=0,
        label="setosa",
        confidence=0.9847031668428455,
        probabilities=Probabilities(
            setosa=0.9847031668428455, versicolor=0.015296771119383056, virginica=6.203777137248186e-08
        ),
        model=ModelVersion(name="iris", version="1"),
    )

    @app.post("/predict")
    async def predict(row: Row) -> Answer:
        return constant

    return app
