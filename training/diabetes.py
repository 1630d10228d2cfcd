"""Example with scikit-learn's diabetes data: predicts the progression from ten measurements of a patient."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    PredictionErrorDisplay,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.contract import ColumnKeywords
from training.example import Example

_INPUTS: dict[str, ColumnKeywords] = {
    "age": {"minimum": 0, "maximum": 120, "description": "Age", "unit": "years"},
    "sex": {"enum": [1, 2], "description": "Sex, as the data set codes it"},
    "bmi": {
        "exclusiveMinimum": 0,
        "maximum": 100,
        "description": "Body mass index",
        "unit": "kg/m²",
    },
    "bp": {
        "exclusiveMinimum": 0,
        "maximum": 300,
        "description": "Mean blood pressure",
        "unit": "mmHg",
    },
    "s1": {"minimum": 0, "description": "Total serum cholesterol", "unit": "mg/dl"},
    "s2": {"minimum": 0, "description": "Low-density lipoproteins", "unit": "mg/dl"},
    "s3": {"minimum": 0, "description": "High-density lipoproteins", "unit": "mg/dl"},
    "s4": {"minimum": 0, "description": "Total cholesterol / HDL"},
    "s5": {"minimum": 0, "description": "Logarithm of serum triglycerides"},
    "s6": {"minimum": 0, "description": "Blood sugar", "unit": "mg/dl"},
}


def diabetes() -> Example:
    """Return the example with its data."""
    return Example(
        name="diabetes",
        data=load_diabetes(as_frame=True, scaled=False),
        estimator=_estimator,
        score=_score,
        figure=_error_figure,
        figure_file="prediction_errors.png",
        inputs=_INPUTS,
    )


def _estimator(regularization: float) -> Any:
    return make_pipeline(StandardScaler(), Ridge(alpha=regularization))


def _score(model: Any, x: Any, y: Any) -> dict[str, float]:
    predictions = model.predict(x)
    return {
        "r2": r2_score(y, predictions),
        "mean_absolute_error": mean_absolute_error(y, predictions),
        "root_mean_squared_error": root_mean_squared_error(y, predictions),
    }


def _error_figure(model: Any, x: Any, y: Any) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    PredictionErrorDisplay.from_estimator(model, x, y, kind="actual_vs_predicted", ax=figure.subplots())
    return figure
