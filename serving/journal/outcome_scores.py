"""Score a prediction against its true outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from serving.codecs.prediction_schema import ClassLabels, PredictionSchema, Probabilities, Regression


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one prediction: `correct` for a class, `error` (predicted minus true) for a number."""

    correct: bool | None = None
    error: float | None = None


class InvalidOutcome(Exception):
    """The outcome is impossible for this prediction; the message describes the valid ones."""


def score(outputs: PredictionSchema, prediction: Any, outcome: Any) -> Score:
    """Return the score of `prediction`, the object that the typed routes return for a row.

    A class, by its name or number, is correct or not. A number has an error. Predictions without a task are
    scored in the same way if they are numbers, strings or booleans. A nested outcome must have the
    prediction's shape.

    Raises:
        InvalidOutcome: The outcome does not match the outputs that the version declares.
    """
    predicted = prediction.get("prediction") if isinstance(prediction, dict) else None
    if isinstance(outputs, Probabilities | ClassLabels):
        return _score_class(outputs.classes, predicted, outcome)
    if isinstance(outputs, Regression):
        if not _is_number(outcome):
            raise InvalidOutcome("Input should be a finite number")
        return _measured(predicted, outcome) if _is_number(predicted) else Score()
    if not _is_alike(predicted, outcome):
        raise InvalidOutcome(f"Input should have the shape of the prediction, {_shape(predicted)}")
    if _is_number(predicted) and _is_number(outcome):
        return _measured(predicted, outcome)
    if isinstance(predicted, str | bool):
        return Score(correct=predicted == outcome)
    return Score()


def _measured(predicted: Any, outcome: Any) -> Score:
    error = float(predicted) - float(outcome)
    if not math.isfinite(error * error):
        raise InvalidOutcome("Input should be a number whose error can be squared")
    return Score(error=error)


def _score_class(classes: tuple[str, ...], predicted: Any, outcome: Any) -> Score:
    if isinstance(outcome, str) and outcome in classes:
        outcome = classes.index(outcome)
    if isinstance(outcome, bool) or not isinstance(outcome, int) or not 0 <= outcome < len(classes):
        raise InvalidOutcome(
            f"Input should be a class: one of {', '.join(classes[:20])}, or its number from 0 on"
        )
    return Score(correct=predicted == outcome) if predicted is not None else Score()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_alike(predicted: Any, outcome: Any) -> bool:
    if predicted is None or (_is_number(predicted) and _is_number(outcome)):
        return True
    if isinstance(predicted, dict) and isinstance(outcome, dict):
        return predicted.keys() == outcome.keys() and all(
            _is_alike(predicted[name], outcome[name]) for name in predicted
        )
    if isinstance(predicted, list) and isinstance(outcome, list):
        return not predicted or all(_is_alike(predicted[0], element) for element in outcome)
    return type(predicted) is type(outcome)


def _shape(predicted: Any) -> str:
    if isinstance(predicted, dict):
        return f"an object of {', '.join(map(str, [*predicted][:20]))}"
    names = {bool: "a boolean", str: "a text", list: "a list"}
    return next((name for kind, name in names.items() if isinstance(predicted, kind)), "a number")
