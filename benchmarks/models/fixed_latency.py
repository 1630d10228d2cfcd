"""A model that takes 5 ms for each row, as one on an accelerator would: logged as code by `overload`."""

import time

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

SECONDS_PER_ROW = 0.005


class FixedLatency(PythonModel):
    """Answers zeros once its time is over; it leaves the cores to those who measure."""

    # MLflow would take type hints for the model's signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """One zero for each row."""
        time.sleep(SECONDS_PER_ROW * len(model_input))
        return [0.0] * len(model_input)


set_model(FixedLatency())
