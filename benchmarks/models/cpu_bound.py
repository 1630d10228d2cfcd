"""A model that uses 20 ms of CPU time per call. `heavy` logs it as code."""

import time

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

CPU_SECONDS = 0.02


class CpuBound(PythonModel):
    """Return zeros after a fixed CPU time."""

    # Without type hints: MLflow would derive the model's signature from them.
    # Without type hints, from which MLflow would derive another signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return one zero per row."""
        # The thread's own clock excludes time that other processes had the core.
        deadline = time.thread_time() + CPU_SECONDS
        while time.thread_time() < deadline:
            pass
        return [0.0] * len(model_input)


set_model(CpuBound())
