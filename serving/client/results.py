"""The results of the client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import httpx

from serving.client.errors import UnexpectedResponse


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The model version that predicted; the version is None for a logged model outside the registry."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction for one row.

    Attributes:
        prediction: The value in the type of the output signature; for a classifier the number of the class.
        label: The name of the class; None unless the model is a classifier.
        confidence: The probability of the class; None unless the model returns probabilities.
        probabilities: The probability of each class by its name; None unless the model returns them.
    """

    prediction: Any
    label: str | None = None
    confidence: float | None = None
    probabilities: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionResult(Prediction):
    """The response for one row.

    If the model does not return one result per row, `prediction` is its whole output.

    Attributes:
        model: The exact version that predicted.
        request_id: Identifies the request in the log of the service.
        prediction_id: Identifies the prediction for feedback; None without a journal.
    """

    model: ModelVersion
    request_id: str
    prediction_id: str | None


@dataclass(frozen=True)
class BatchResult:
    """The response for several rows.

    Attributes:
        output: `predictions` as the service returned it: one object per row, or the whole output of a model
            that does not return one result per row.
        model: The exact version that predicted, one for all rows.
        request_id: Identifies the request in the log of the service.
        prediction_id: Identifies the predictions for feedback; None without a journal.
    """

    output: Any
    model: ModelVersion
    request_id: str
    prediction_id: str | None

    @cached_property
    def predictions(self) -> Sequence[Prediction]:
        """Return one prediction per row, in the order of the rows.

        Raises:
            TypeError: The model does not return one result per row; use `output`.
        """
        try:
            return [Prediction(**_prediction_fields(row)) for row in self.output]
        except (TypeError, LookupError):
            name = self.model.name
            message = f"Model {name} does not return one result per row: use `output`."
            raise TypeError(message) from None


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """A response of MLflow's scoring protocol.

    Attributes:
        body: The body, parsed from JSON.
        model: The exact version that predicted.
        request_id: Identifies the request in the log of the service.
        prediction_id: Identifies the predictions for feedback; None without a journal.
    """

    body: Any
    model: ModelVersion
    request_id: str
    prediction_id: str | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One served reference.

    Attributes:
        name: The name of the model.
        uri: The reference, such as `models:/iris@champion`.
        version: The live version; None if nothing is live, or for a logged model.
        state: `live`, or why it is not.
        contract: The contract of the live version as JSON; None if nothing is live.
        details: All fields that the service returns.
    """

    name: str
    uri: str
    version: str | None
    state: str
    contract: Mapping[str, Any] | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Readiness:
    """The readiness of the service.

    Attributes:
        is_ready: Every required model is live.
        models: The served references; without their contracts.
        details: The whole body of `/ready`.
    """

    is_ready: bool
    models: Sequence[ModelInfo]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Feedback:
    """The true outcome for one row of an earlier prediction; the row is counted from 0."""

    prediction_id: str
    outcome: Any
    row: int = 0


# -- parsing; what does not have the expected form raises LookupError, TypeError or ValueError


def prediction(response: httpx.Response) -> PredictionResult:
    """Parse the response of `/predict`."""
    body = _object(response)
    fields = {"prediction": body["predictions"]} if "predictions" in body else _prediction_fields(body)
    return PredictionResult(**fields, **_origin(response, body["model"]))


def batch(response: httpx.Response) -> BatchResult:
    """Parse the response of `/predict/batch`."""
    body = _object(response)
    return BatchResult(body["predictions"], **_origin(response, body["model"]))


def scoring(response: httpx.Response) -> ScoringResult:
    """Parse the response of `/invocations`, which names the version only in headers."""
    return ScoringResult(json.loads(response.content), **_origin(response))


def stream(response: httpx.Response) -> httpx.Response:
    """Return the response of `/predict/stream`, whose events are parsed as they arrive."""
    if not is_event_stream(response):
        raise UnexpectedResponse(f"{response.url.path} returned no stream of events.")
    return response


def is_event_stream(response: httpx.Response) -> bool:
    """Check whether a response is a stream of events, which is not read at once."""
    media_type: str = response.headers.get("content-type", "")
    return response.is_success and media_type.startswith("text/event-stream")


def models(response: httpx.Response) -> list[ModelInfo]:
    """Parse the response of `/models`."""
    return [_model(fields) for fields in _object(response)["models"]]


def model(response: httpx.Response) -> ModelInfo:
    """Parse the response of `/models/{name}`."""
    return _model(_object(response))


def readiness(response: httpx.Response) -> Readiness:
    """Parse the response of `/ready`, whose status is 503 while the service is not ready."""
    body = _object(response)
    return Readiness(response.is_success, [_model(fields) for fields in body["models"]], body)


def recorded(response: httpx.Response) -> int:
    """Parse the response of `/feedback`."""
    return int(_object(response)["recorded"])


def _object(response: httpx.Response) -> dict[str, Any]:
    body = json.loads(response.content)
    if not isinstance(body, dict):
        raise UnexpectedResponse(f"{response.url.path} returned no JSON object.")
    return body


def _prediction_fields(row: Any) -> dict[str, Any]:
    """Return the fields of a prediction; later releases of the service may add others."""
    if not isinstance(row, Mapping):
        raise TypeError("A prediction should be an object.")
    optional = {name: row.get(name) for name in ("label", "confidence", "probabilities")}
    return {"prediction": row["prediction"], **optional}


def version_of(response: httpx.Response) -> ModelVersion:
    """Return the version that the headers of a response name."""
    headers = response.headers
    if "x-model-name" not in headers:
        raise UnexpectedResponse(f"{response.url.path} returned a response without a model version.")
    name, version = unquote(headers["x-model-name"]), unquote(headers.get("x-model-version", ""))
    # A logged model has its id there: it has no version.
    return ModelVersion(name, version if version.isdecimal() else None)


def _origin(response: httpx.Response, named: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the version and the identifiers of a response."""
    headers = response.headers
    return {
        "model": ModelVersion(named["name"], named["version"]) if named else version_of(response),
        "request_id": headers.get("x-request-id", ""),
        "prediction_id": headers.get("x-prediction-id"),
    }


def _model(fields: Mapping[str, Any]) -> ModelInfo:
    name, uri, version, state = (fields[key] for key in ("name", "uri", "version", "state"))
    return ModelInfo(name, uri, version, state, fields.get("contract"), fields)
