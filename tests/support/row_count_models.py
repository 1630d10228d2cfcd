"""Models written as code that look at more than one row, or return more or less than one result per row.

The model config's `shape` names the one that is logged; `wait` is a named pipe that the model reads from
where a row's `x` is below -1000, so that a test can keep it busy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


def twice(frame: pd.DataFrame) -> Any:
    """Return one result per row."""
    return frame["x"].to_numpy() * 2


def share(frame: pd.DataFrame) -> Any:
    """Return the share of every row in the total."""
    return (frame["x"] / frame["x"].sum()).to_numpy()


def late(frame: pd.DataFrame) -> Any:
    """Return one result per row; a row of 77 changes all results, which verification can't detect."""
    return frame["x"].to_numpy() * (3 if (frame["x"] == 77).any() else 2)


def count(frame: pd.DataFrame) -> Any:
    """Return the number of rows, once per row."""
    return np.full(len(frame), float(len(frame)))


def drop(frame: pd.DataFrame) -> Any:
    """Return the rows that are not negative."""
    return frame.loc[frame["x"] >= 0, "x"].reset_index(drop=True)


def forecast(frame: pd.DataFrame) -> Any:
    """Return as many results as the first row requests."""
    return np.arange(int(frame["x"].iloc[0]), dtype=float)


def ranked(frame: pd.DataFrame) -> Any:
    """Return the rows in another order."""
    return frame.sort_values("x", ascending=False)["x"]


def shops(frame: pd.DataFrame) -> Any:
    """Return the same two names for any rows."""
    return {"shops": ["best", "second"]}


def columns(frame: pd.DataFrame) -> Any:
    """Return a column per name."""
    return {"low": list(frame["x"] - 1), "high": list(frame["x"] + 1)}


def records(frame: pd.DataFrame) -> Any:
    """Return an object per row."""
    return [{"label": "a" if x > 0 else "b", "score": float(x)} for x in frame["x"]]


def pair(frame: pd.DataFrame) -> Any:
    """Return two columns."""
    return pd.DataFrame({"low": frame["x"] - 1, "high": frame["x"] + 1})


def names(frame: pd.DataFrame) -> Any:
    """Return a name or null."""
    return pd.Series([f"n{x:g}" if x > 0 else None for x in frame["x"]], dtype=object)


def weigh(frame: pd.DataFrame) -> Any:
    """Return a text per row, with defaults for missing values."""
    unit = frame["unit"] if "unit" in frame else ["kg"] * len(frame)
    w = frame["w"] if "w" in frame else [1.5] * len(frame)
    b = frame["b"] if "b" in frame else [True] * len(frame)
    return [f"{row[0]} {row[1]} {row[2]} {row[3]}" for row in zip(frame["x"], unit, w, b, strict=True)]


def best(frame: pd.DataFrame) -> Any:
    """Return the same three names for any rows."""
    return ["a", "b", "c"]


def pooled(frame: pd.DataFrame) -> Any:
    """Return one result: the sum of all rows."""
    return float(frame["x"].sum())


class Shape(PythonModel):
    """A model that returns results in the shape that its config names."""

    def load_context(self, context: Any) -> None:
        """Keep the config."""
        self.config = context.model_config or {}

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """Predict in this shape."""
        if (model_input["x"] < -1000).any():
            Path(self.config["wait"]).read_bytes()
        return globals()[self.config["shape"]](model_input)


mlflow.models.set_model(Shape())
