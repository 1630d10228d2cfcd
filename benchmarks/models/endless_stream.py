"""A model whose stream does not end. `soak` logs it as code."""

from collections.abc import Iterator
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class EndlessStream(PythonModel):
    """Return each `x`, or stream texts of 10 KB for as long as the client reads."""

    # Without type hints: MLflow would derive the model's signature from them.
    # Without type hints, from which MLflow would derive another signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return each `x`."""
        return model_input["x"].to_numpy(float)

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Iterator[Any]:
        """Yield ten texts for a negative number, otherwise texts without end."""
        count = 0
        while count < 10 or model_input["x"] >= 0:
            count += 1
            yield {"text": "x" * 10_000}


set_model(EndlessStream())
