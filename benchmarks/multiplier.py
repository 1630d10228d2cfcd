"""A model that multiplies by what its configuration says, or does not load: logged as code by `soak`."""

import ctypes
import itertools
import os
import signal
import time
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT = 0x8000


class Multiplier(PythonModel):
    """Tells by its answers which version it is."""

    def load_context(self, context: Any) -> None:
        """Take the factor; a version without one is broken."""
        self.factor = context.model_config["factor"]

    # MLflow would take type hints for the model's signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return each `x` times the factor; -44 clones a process, and -47 takes 0.3 s."""
        numbers = model_input["x"].to_numpy(float)
        if -44.0 in numbers:
            clone()
        if -47.0 in numbers:
            time.sleep(0.3)
        return numbers * self.factor

    def predict_stream(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return chunks without end."""
        return itertools.repeat("x" * 10_000)


def clone() -> None:
    """Start a process whose parent is the fork server, and which ends at once."""
    number, flags = _CLONE[os.uname().machine], _CLONE_PARENT | signal.SIGCHLD
    if ctypes.PyDLL(None).syscall(number, flags, 0, 0, 0, 0) == 0:
        os._exit(0)


set_model(Multiplier())
