"""A model that multiplies by what its configuration says, or does not load: logged as code by `soak`."""

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Multiplier(PythonModel):
    """Tells by its answers which version it is."""

    def load_context(self, context: Any) -> None:
        """Take the factor; a version without one is broken."""
        self.factor = context.model_config["factor"]

    # MLflow would take type hints for the model's signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Each `x` times the factor."""
        return model_input["x"].to_numpy(float) * self.factor


set_model(Multiplier())
