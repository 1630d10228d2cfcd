"""A model that takes 5 ms per row without CPU time, as on an accelerator. `overload` logs it as code."""

import time

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

SECONDS_PER_ROW = 0.005


class FixedLatency(PythonModel):
    """Return zeros after a fixed time; leave the CPU to the other processes."""

    # Without type hints: MLflow would derive the model's signature from them.
    # Without type hints, from which MLflow would derive another signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return one zero per row."""
        time.sleep(SECONDS_PER_ROW * len(model_input))
        return [0.0] * len(model_input)


set_model(FixedLatency())
