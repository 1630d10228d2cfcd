"""A model from code that returns its input: each value must arrive at the model unchanged, and return so."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class Echo(PythonModel):
    """Returns its input columns."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """Return the rows; `params` are added to `n`."""
        return model_input.assign(n=model_input["n"] + (params or {}).get("plus", 0))


mlflow.models.set_model(Echo())
