"""The iris flowers: four lengths in, the probabilities of three species out."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.contract import Words
from training.example import Example

_COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def iris() -> Example:
    """The example, with its data read."""
    data = load_iris(as_frame=True)
    data.data.columns = list(_COLUMNS)
    return Example(
        name="iris",
        data=data,
        estimator=_estimator,
        score=_score,
        picture=_confusion_matrix,
        picture_name="confusion_matrix.png",
        inputs={column: _words(column) for column in _COLUMNS},
        classes=[str(name) for name in data.target_names],
    )


def _words(column: str) -> Words:
    return {
        "exclusiveMinimum": 0,
        "maximum": 10,
        "description": f"{column.replace('_', ' ').capitalize()} in cm",
        "unit": "cm",
    }


def _estimator(regularization: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization))


def _score(model: Any, x: Any, y: Any) -> dict[str, float]:
    chances, answers = model.predict_proba(x), model.predict(x)
    return {
        "accuracy": accuracy_score(y, answers),
        "f1_macro": f1_score(y, answers, average="macro"),
        "log_loss": log_loss(y, chances),
    }


def _confusion_matrix(model: Any, x: Any, y: Any) -> Figure:
    # A Figure of its own draws without a display, and leaves pyplot's global state alone.
    figure = Figure(figsize=(5, 4), layout="constrained")
    names = load_iris().target_names
    ConfusionMatrixDisplay.from_estimator(
        model, x, y, display_labels=names, cmap="Blues", colorbar=False, ax=figure.subplots()
    )
    return figure
