"""Trains models, logs them with a serving contract, registers and promotes them.

MLflow and scikit-learn take seconds to import, so nothing that `python -m training` imports at its
start brings them along: `--help`, a mistyped argument and a bootstrap that finds its version there
should not wait for them.
"""

from training.model import Logged, log_model

__all__ = ["Logged", "log_model"]
