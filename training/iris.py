"""Example with the iris data: predicts the probabilities of three species from four lengths."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.contract import ColumnKeywords
from training.example import Example

_COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def iris() -> Example:
    """Return the example with its data."""
    data = load_iris(as_frame=True)
    data.data.columns = list(_COLUMNS)
    return Example(
        name="iris",
        data=data,
        estimator=_estimator,
        score=_score,
        figure=_confusion_matrix_figure,
        figure_file="confusion_matrix.png",
        inputs={column: _keywords(column) for column in _COLUMNS},
        classes=[str(name) for name in data.target_names],
    )


def _keywords(column: str) -> ColumnKeywords:
    return {
        "exclusiveMinimum": 0,
        "maximum": 10,
        "description": f"{column.replace('_', ' ').capitalize()} in cm",
        "unit": "cm",
    }


def _estimator(regularization: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization))


def _score(model: Any, x: Any, y: Any) -> dict[str, float]:
    probabilities, predictions = model.predict_proba(x), model.predict(x)
    return {
        "accuracy": accuracy_score(y, predictions),
        "f1_macro": f1_score(y, predictions, average="macro"),
        "log_loss": log_loss(y, probabilities),
    }


def _confusion_matrix_figure(model: Any, x: Any, y: Any) -> Figure:
    # A separate Figure needs no display and leaves pyplot's global state alone.
    figure = Figure(figsize=(5, 4), layout="constrained")
    names = load_iris().target_names
    ConfusionMatrixDisplay.from_estimator(
        model, x, y, display_labels=names, cmap="Blues", colorbar=False, ax=figure.subplots()
    )
    return figure
