"""Errors between training and a registry, as messages for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_MAX_LENGTH = 300
# MLflow's codes for failed connections and for errors of the server.
_SERVER_ERROR_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


class TrainingError(Exception):
    """An error whose message is one sentence that the user can act on."""


@contextmanager
def registry_errors(uri: str) -> Iterator[None]:
    """Translate exceptions of MLflow and its stores into `TrainingError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in _SERVER_ERROR_CODES:
            raise TrainingError(_unavailable(uri, error)) from error
        raise TrainingError(_sentence(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise TrainingError(_unavailable(uri, error)) from error


def _unavailable(uri: str, error: Exception) -> str:
    return f"the registry at {uri} can't be used: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", error)).partition("\n[SQL")[0].split())
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[: _MAX_LENGTH // 3]} … {text[-2 * _MAX_LENGTH // 3 :]}"  # the cause is at the end
