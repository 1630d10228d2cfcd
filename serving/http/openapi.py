"""The OpenAPI document: typed routes of the live versions, other servers' protocols, and admin endpoints."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serving.http import problem_details
from serving.http import protocol_schemas as schemas
from serving.http.endpoints import feedback
from serving.http.typed_openapi import typed_routes
from serving.models.loaded_model import LoadedModel
from serving.protocols.json_lines import JSON_LINES
from serving.protocols.tabular import ARROW, CSV, PARQUET
from serving.protocols.tensors import InferenceRequest

_MAX_INT64 = 2**63 - 1
_JSON = "application/json"
_STRING = {"type": "string"}
_TABLES = {
    JSON_LINES: _STRING,
    CSV: _STRING,
    PARQUET: _STRING | {"format": "binary"},
    ARROW: _STRING | {"format": "binary"},
}
_ERROR_STATUSES = (400, 404, 405, 413, 415, 500, 503, 504)


def build_openapi(
    app: FastAPI, default: LoadedModel | None, live: Mapping[str, LoadedModel], *, has_keys: bool
) -> dict[str, Any]:
    """Return the OpenAPI document of these live versions.

    Args:
        app: the application with all other routes.
        default: the live version of the default model.
        live: the live version of each model, by name.
        has_keys: whether API keys are enabled.
    """
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=[*typed_routes(default, live), *app.routes],
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(copy.deepcopy(schemas.SCHEMAS | feedback.SCHEMAS))
    document["paths"] |= _scoring("invocations", "mlflow models serve", schemas.InvocationsRequest)
    document["paths"] |= _scoring("score", "Azure ML's server for MLflow models", schemas.ScoreRequest)
    document["paths"] |= _infer("") | _infer("/versions/{version}")
    for address in ("", "/versions/{version}", "/labels/{label}"):
        document["paths"] |= _tf_predict(address)
    _fix_int64_bounds(components["schemas"])
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _fix_int64_bounds(schema: Any) -> None:
    """Replace the bounds of 64-bit integers, which FastAPI converts to floats, by exact numbers."""
    if isinstance(schema, dict):
        if schema.get("format") == "int64":
            bounds = schema.keys() & {"minimum", "maximum"}
            schema |= {bound: min(int(schema[bound]), _MAX_INT64) for bound in bounds}
        schema = [*schema.values()]
    if isinstance(schema, list):
        for part in schema:
            _fix_int64_bounds(part)


def _scoring(name: str, server: str, request_model: type[BaseModel]) -> dict[str, Any]:
    operation = {
        "tags": ["MLflow's scoring protocol"],
        "summary": f"Predict, as {server} does",
        "operationId": name,
        "parameters": [
            _parameter("query", "model", "a served model, or a reference that is live"),
            _parameter("header", "X-Model", "the same"),
        ],
    }
    request, response = (
        {_JSON: schemas.reference(model)} | _TABLES for model in (request_model, schemas.InvocationsResponse)
    )
    return {f"/{name}": {"post": operation | _bodies(request, response, schemas.InvocationsError)}}


def _infer(version: str) -> dict[str, Any]:
    names = ("name", "version") if version else ("name",)
    operation = {
        "tags": ["open inference protocol"],
        "summary": "Predict, as Triton, KServe and MLServer do",
        "operationId": f"{'pinned_' if version else ''}infer",
        "parameters": [_parameter("path", name, f"the model's {name}") for name in names],
    }
    request, response = (
        {_JSON: schemas.reference(model)} for model in (InferenceRequest, schemas.InferenceResponse)
    )
    bodies = _bodies(request, response, schemas.InferenceError)
    return {f"/v2/models/{{name}}{version}/infer": {"post": operation | bodies}}


def _tf_predict(address: str) -> dict[str, Any]:
    names = ["name", *re.findall(r"{(\w+)}", address)]
    operation = {
        "tags": ["KServe v1 and TensorFlow Serving"],
        "summary": "Predict, as KServe and TensorFlow Serving do",
        "operationId": "_".join(["tf_predict", *names[1:]]),
        "parameters": [_parameter("path", name, f"the model's {name}") for name in names],
    }
    request, response = (
        {_JSON: schemas.reference(model)} for model in (schemas.TfPredictRequest, schemas.TfPredictResponse)
    )
    bodies = _bodies(request, response, schemas.InferenceError)
    return {f"/v1/models/{{name}}{address}:predict": {"post": operation | bodies}}


def _parameter(where: str, name: str, description: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "in": where, "schema": _STRING, "description": description}
    if where == "path":
        found |= {"required": True, "schema": _STRING | {"pattern": problem_details.PATH_PATTERN}}
    return found


def _bodies(
    request: Mapping[str, Any], response: Mapping[str, Any], error: type[BaseModel]
) -> dict[str, Any]:
    """Return request body and responses of an operation, from schemas by media type."""
    failed = {
        str(status): {
            "description": documented["description"],
            "content": _content({_JSON: schemas.reference(error)}),
        }
        for status, documented in problem_details.documented(*_ERROR_STATUSES).items()
    }
    success = {"200": {"description": "the predictions", "content": _content(response)}}
    return {
        "requestBody": {"required": True, "content": _content(request)},
        "responses": success | failed,
    }


def _content(by_media_type: Mapping[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in by_media_type.items()}
