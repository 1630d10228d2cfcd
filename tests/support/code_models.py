"""Models written as code ("models from code"): the model config's `part` chooses one."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelConfig
from mlflow.pyfunc import PythonModel
from pydantic import BaseModel


class Message(BaseModel):
    role: str
    content: str
    at: datetime.datetime | None = None


class Nested(PythonModel):
    """Returns the values of its input and their types."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return [
            {"sum": float(np.sum(row["v"])), "told": f"{row['o']!r} {row.get('m')!r}", "v": list(row["v"])}
            for row in model_input.to_dict("records")
        ]


class Arrays(PythonModel):
    """Returns arrays by name; one may have any width."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        image, words = model_input["image"], model_input["words"]
        assert image.dtype == np.uint8
        return {
            "mean": image.reshape(len(image), -1).mean(axis=1),
            "twice": image.astype(np.float32) * 2,
            "words": np.array([" ".join(row) for row in words]),
        }


class Texts(PythonModel):
    """Returns texts without a name."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        times = max(0, min((params or {"times": 1})["times"], 9))
        return [text.upper() * times for text in model_input[0]]


class Frame(PythonModel):
    """Returns a DataFrame with gaps, dates and bytes."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        x = model_input["x"]
        return pd.DataFrame(
            {
                "half": x / 2,
                "gap": x.where(x > 0),
                "note": [f"n{value:g}" if value > 0 else None for value in x],
                "at": pd.to_datetime(x, unit="D"),
                "whole": x.astype(int),
                "is_large": x > 10,
            }
        )


class Whole(PythonModel):
    """Returns one value for all rows."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return {"total": float(model_input["x"].sum()), "rows": len(model_input)}


class Hinted(PythonModel):
    """Returns messages, declared by type hints; supports streaming."""

    def predict(self, model_input: list[Message]) -> list[str]:
        return [f"{message.role}: {message.content} {message.at}" for message in model_input]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Iterator[Any]:
        yield from (f"{model_input.role}: {word}" for word in model_input.content.split())


class Optional(PythonModel):
    """Returns the number of values in each row; a request may omit all columns."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input.notna().sum(axis=1).tolist()


PARTS: dict[str, Callable[[], Any]] = {
    part.__name__.lower(): part for part in (Nested, Arrays, Texts, Frame, Whole, Hinted, Optional)
}

mlflow.models.set_model(PARTS[ModelConfig(development_config={"part": "frame"}).get("part")]())
