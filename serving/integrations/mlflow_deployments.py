"""MLflow's deployments interface: `mlflow deployments -t serving:http://host:8000` and `get_deploy_client`.

MLflow loads this module as the plugin `serving`. It needs `target_help`, `run_local` and one client class
in it.
https://mlflow.org/docs/latest/ml/plugins/ describes the interface.
"""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from mlflow.deployments import PredictionsResponse
from mlflow.deployments.base import BaseDeploymentClient
from mlflow.environment_variables import MLFLOW_DEPLOYMENT_PREDICT_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from serving.client import Client, ClientError, ModelInfo, ResponseError
from serving.client.encoding import to_arrow, to_jsonable

_DEFAULT_URL = "http://127.0.0.1:8000"
_BODY_FIELDS = frozenset(
    ("dataframe_split", "dataframe_records", "instances", "inputs", "messages", "prompt", "input")
)
"""The fields that make a dictionary a body of MLflow's scoring protocol."""
_CODES: Mapping[int, str] = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "INVALID_PARAMETER_VALUE",
    415: "INVALID_PARAMETER_VALUE",
    422: "INVALID_PARAMETER_VALUE",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "TEMPORARILY_UNAVAILABLE",
}
"""MLflow's error codes by HTTP status."""
_PROMOTE = (
    "The service deploys the versions that the registry promotes. Set the alias or the stage of the version "
    "instead, such as MlflowClient().set_registered_model_alias(name, alias, version): the service verifies "
    "the version and switches to it. SERVING_MODELS of the service selects the models."
)
_HELP = """\
Target URI: serving:http://HOST:PORT, or serving:https://… with TLS; serving alone is
serving:http://127.0.0.1:8000. The API key is read from the environment variable MLFLOW_SERVING_API_KEY.

A deployment is a served model. Its name is the name of the registered model, or a reference that is live:
iris, iris@champion, iris/Production, iris/3. An endpoint is the same as a deployment.

list, get and predict are supported. create, update and delete are not: the service deploys the versions that
the registry promotes, and follows the registry within about a second.

run-local starts a service of one model reference on this machine. -C NAME=VALUE sets a setting of the
service: -C port=8001 sets SERVING_PORT.
"""


def target_help() -> str:
    """Return the help of `mlflow deployments help -t serving`."""
    return _HELP


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Serve a model reference on this machine until the service is interrupted.

    Args:
        name: The name of the registered model, under which the service serves it.
        model_uri: A reference, such as `models:/iris@champion`.
        flavor: Must be absent or `python_function`, as which the service loads every model.
        config: Settings of the service by name, such as `port`.

    Raises:
        MlflowException: The name is not that of the model, the flavor is another one, or the service failed.
    """
    _check_flavor(flavor)
    served = model_uri.removeprefix("models:/").replace("@", "/").partition("/")[0]
    if name != served:
        _refuse(f"The service names a deployment after its registered model: use the name {served}.")
    settings = {f"SERVING_{key.upper()}": str(value) for key, value in (config or {}).items()}
    command = [sys.executable, "-m", "serving", "run"]
    status = subprocess.run(
        command, env=os.environ | settings | {"SERVING_MODELS": model_uri}, check=False
    ).returncode
    if status:
        raise MlflowException(f"The service ended with the exit status {status}.")


def _check_flavor(flavor: str | None) -> None:
    if flavor not in (None, "python_function"):
        _refuse(f"The service loads models as python_function, not as {flavor}.")


class ServingDeploymentClient(BaseDeploymentClient):
    """The deployments of one service.

    Args:
        target_uri: The target, such as `serving:http://host:8000`.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        url = target_uri.partition(":")[2]
        try:
            seconds = MLFLOW_DEPLOYMENT_PREDICT_TIMEOUT.get()  # type: ignore[no-untyped-call]
            self._client = Client(url or _DEFAULT_URL, deadline=seconds)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(
                f"{error} Example: serving:{_DEFAULT_URL}"
            ) from None
        weakref.finalize(self, self._client.close)

    # -- deployments

    def create_deployment(
        self, name: str, model_uri: str, flavor: Any = None, config: Any = None, endpoint: Any = None
    ) -> NoReturn:
        """Raise an error: promotion happens in the registry."""
        _refuse(_PROMOTE)

    def update_deployment(
        self, name: str, model_uri: Any = None, flavor: Any = None, config: Any = None, endpoint: Any = None
    ) -> NoReturn:
        """Raise an error: promotion happens in the registry."""
        _refuse(_PROMOTE)

    def delete_deployment(self, name: str, config: Any = None, endpoint: Any = None) -> NoReturn:
        """Raise an error: promotion happens in the registry."""
        _refuse(_PROMOTE)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return the served models; with an endpoint, only those of that name."""
        with _translated():
            found = self._client.models()
        return [_summary(info) for info in found if endpoint in (None, info.name)]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return a served model with its live version and its contract."""
        with _translated():
            return dict(self._client.model(_named(name, endpoint) or name).details)

    # -- endpoints, which are the same as deployments

    def create_endpoint(self, name: str, config: Any = None) -> NoReturn:
        """Raise an error: promotion happens in the registry."""
        _refuse(_PROMOTE)

    def update_endpoint(self, endpoint: str, config: Any = None) -> NoReturn:
        """Raise an error: promotion happens in the registry."""
        _refuse(_PROMOTE)

    def delete_endpoint(self, endpoint: str) -> NoReturn:
        """Raise an error: promotion happens in the registry."""
        _refuse(_PROMOTE)

    def list_endpoints(self) -> list[dict[str, Any]]:
        """Return the served models."""
        return self.list_deployments()

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """Return a served model with its live version and its contract."""
        return self.get_deployment(endpoint)

    # -- predictions

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Return the output of a model, as pyfunc returns it.

        Args:
            deployment_name: A served model or a reference that is live; the service's default model if
                neither this nor the endpoint is given.
            inputs: A DataFrame, an array, a list, a dictionary of columns or of one row, or a body of
                MLflow's scoring protocol, which may have `params`.
            endpoint: The same as the name.

        Raises:
            MlflowException: The request or the model failed, or the inputs cannot be sent exactly.
        """
        with _translated():
            name = _named(deployment_name, endpoint)
            body = self._client.score(_body(inputs), model=name).body
        return PredictionsResponse(body if isinstance(body, dict) else {"predictions": body})

    def predict_stream(
        self,
        deployment_name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> Iterator[Any]:
        """Yield the chunks of the streamed prediction for one row; see `predict`."""
        options: Any = {"model": name} if (name := _named(deployment_name, endpoint)) else {}
        with _translated(), self._client.predict_stream(_row(inputs), **options) as stream:
            yield from stream


def _summary(info: ModelInfo) -> dict[str, Any]:
    return {"name": info.name, "uri": info.uri, "version": info.version, "state": info.state}


def _named(name: str | None, endpoint: str | None) -> str | None:
    if name and endpoint and name != endpoint:
        _refuse("An endpoint is the same as a deployment here: name one of them.")
    return name or endpoint


def _body(inputs: Any) -> Any:
    """Return inputs as a DataFrame or as a body of MLflow's scoring protocol."""
    if isinstance(inputs, np.ndarray) and inputs.ndim == 2:
        inputs = pd.DataFrame(inputs)
    if isinstance(inputs, pd.DataFrame):
        return _frame(inputs)
    if inputs is None:
        _refuse("There are no inputs.")
    if isinstance(inputs, Mapping) and not inputs.keys().isdisjoint(_BODY_FIELDS):
        return inputs
    return {"inputs": inputs}


def _frame(frame: pd.DataFrame) -> Any:
    """Return a DataFrame as it is, or as JSON if Arrow cannot represent its index or one of its columns."""
    if frame.index.equals(pd.RangeIndex(len(frame))):
        try:
            to_arrow(frame)
        except ValueError:
            pass
        else:
            return frame
    values = frame.astype(object).where(frame.notna(), None)
    return {"dataframe_split": to_jsonable(values.to_dict(orient="split"))}


def _row(inputs: Any) -> Mapping[str, Any]:
    if not isinstance(inputs, Mapping):
        _refuse("A stream takes one row: a dictionary of the columns.")
    return inputs


def _refuse(message: str) -> NoReturn:
    raise MlflowException.invalid_parameter_value(message)


@contextmanager
def _translated() -> Iterator[None]:
    """Translate the errors of the client to MLflow's."""
    try:
        yield
    except ResponseError as error:
        code = _CODES.get(error.status, "INTERNAL_ERROR")
        raise MlflowException(str(error), ErrorCode.Value(code)) from error
    except ClientError as error:
        raise MlflowException(str(error), ErrorCode.Value("TEMPORARILY_UNAVAILABLE")) from error
    except (TypeError, ValueError) as error:
        raise MlflowException.invalid_parameter_value(str(error)) from error
