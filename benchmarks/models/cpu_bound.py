"""A model that keeps a core busy for 20 ms a call, whatever it is asked: logged as code by `heavy`."""

import time

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

CPU_SECONDS = 0.02


class CpuBound(PythonModel):
    """Answers zeros after it has spent its share of CPU."""

    # MLflow would take type hints for the model's signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """One zero for each row."""
        # The thread's own clock: on a busy machine, time that others had the core for doesn't count.
        wait_until = time.thread_time() + CPU_SECONDS
        while time.thread_time() < wait_until:
            pass
        return [0.0] * len(model_input)


set_model(CpuBound())
