"""BentoML: a batchable service with adaptive batching, one worker."""

import os
from typing import Any

import bentoml
import mlflow.pyfunc
import numpy as np
import pandas as pd

# Off, as in this service: access log, metrics and tracing.
CONFIG: dict[str, Any] = {
    "workers": 1,
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}


COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")


@bentoml.service(**CONFIG)
class Iris:
    """The model, which predicts all waiting rows as one batch."""

    def __init__(self) -> None:
        self.model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the probabilities of each row; BentoML batches arrays fastest."""
        answers: np.ndarray = self.model.predict(pd.DataFrame(rows, columns=list(COLUMNS)))
        return answers
