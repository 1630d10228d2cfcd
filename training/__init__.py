"""Train models, log them with a serving contract, register and promote them.

MLflow and scikit-learn take seconds to import. Therefore no module that `python -m training` imports at its
start imports them: `--help`, a wrong argument and a bootstrap with nothing to do return immediately.
"""

from training.model import Logged, log_model

__all__ = ["Logged", "log_model"]
