"""A model that multiplies by the factor in its configuration, or fails to load. `soak` logs it as code.

Two values of `x` misbehave: `SLOW` delays the call, and `STRAY` starts a child of the fork server.
"""

import ctypes
import os
import platform
import signal
import time
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

SLOW, STRAY = -47.0, -44.0
SLOW_SECONDS = 0.3
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT = 0x8000


def start_stray() -> None:
    """Start a process whose parent is the parent of this one, and which ends immediately."""
    flags = ctypes.c_long(_CLONE_PARENT | signal.SIGCHLD)
    if ctypes.CDLL(None).syscall(ctypes.c_long(_CLONE[platform.machine()]), flags, 0, 0, 0, 0) == 0:
        os._exit(0)


class Multiplier(PythonModel):
    """Identify the version by the factor in its predictions."""

    def load_context(self, context: Any) -> None:
        """Read the factor; a version without a factor fails to load."""
        self.factor = context.model_config["factor"]

    # Without type hints: MLflow would derive the model's signature from them.
    # Without type hints, from which MLflow would derive another signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return each `x` times the factor."""
        if (model_input["x"] == SLOW).any():
            time.sleep(SLOW_SECONDS)
        if (model_input["x"] == STRAY).any():
            start_stray()
        return model_input["x"].to_numpy(float) * self.factor


set_model(Multiplier())
