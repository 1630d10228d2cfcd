"""What goes wrong between training and a registry, in words for the person at the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 300
# What MLflow calls a connection that fails as well as a server that does.
_ITS_OWN_FAULT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


class TrainingError(Exception):
    """Its text is one sentence that a person can act on."""


@contextmanager
def registry_errors(uri: str) -> Iterator[None]:
    """Translate what MLflow and the stores under it raise into `TrainingError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in _ITS_OWN_FAULT:
            raise TrainingError(_away(uri, error)) from error
        raise TrainingError(_sentence(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise TrainingError(_away(uri, error)) from error


def _away(uri: str, error: Exception) -> str:
    return f"the registry at {uri} can't be used: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    return str(getattr(error, "message", error)).partition("\n")[0][:_LONGEST]
