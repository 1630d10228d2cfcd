"""A model whose part is written in its config and in the rows it is given: it answers, or it fails as asked.

It is logged from this file ("models from code"). Its config may have `on_load`, acts to perform while it
loads, and `factor`, by which `x` is multiplied. The column `act` names acts to perform on predicting.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


def perform(acts: str) -> None:
    """Do what acts say, separated by blanks; whatever needs a word more has it after a colon."""
    for act in acts.split():
        _perform(*act.partition(":")[::2])


def _perform(name: str, more: str) -> None:
    if name == "raise":
        raise ValueError(more)
    if name == "hang":
        while True:
            signal.pause()
    if name == "exit":
        os._exit(int(more))
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "quit":
        sys.exit(more)
    if name == "deafen":
        os.closerange(3, 1024)
        _perform("hang", "")
    if name == "note":
        Path(more).write_text(str(os.getpid()))
    if name == "once":
        Path(more).touch(exist_ok=False)
    if name == "wait":
        # Opening a named pipe waits until the test has opened its end, reading until it has closed it.
        Path(more).read_bytes()


class Actor(PythonModel):  # type: ignore[misc]
    """Multiplies `x` by a factor, unless its part is another."""

    def load_context(self, context: Any) -> None:
        """Play the part on loading."""
        self.config = context.model_config or {}
        perform(self.config.get("on_load", ""))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Play the part on predicting; `params` may have a `factor` of its own."""
        acts = model_input.get("act", pd.Series("", model_input.index)).fillna("")
        for act in acts:
            perform(act)
        answer = model_input["x"].to_numpy(float) * (params or self.config).get("factor", 1.0)
        answer[acts == "nan"] = np.nan
        if "text" in set(acts):
            return answer.astype(str)
        return answer[1:] if "drop" in set(acts) else answer


mlflow.models.set_model(Actor())
