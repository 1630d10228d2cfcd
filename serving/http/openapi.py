"""`/openapi.json`: the typed routes of what is live, other servers' protocols, and what operators ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.http import problem_details
from serving.http.endpoints import feedback
from serving.http.typed_openapi import typed_routes
from serving.models.loaded_model import LoadedModel
from serving.protocols.tabular import ARROW, CSV, PARQUET
from serving.protocols.tensors import InferenceRequest

_MAX_TEXT_LENGTH = 2**63 - 1
_JSON = "application/json"
_STRING = {"type": "string"}
_ANY: dict[str, Any] = {}


def build_openapi(
    app: FastAPI, default: LoadedModel | None, live: Mapping[str, LoadedModel], *, has_keys: bool
) -> dict[str, Any]:
    """The OpenAPI document of these live versions, and whether it takes a key to ask."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=[*typed_routes(default, live), *app.routes],
    )
    problem = problem_details.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas |= problem.pop("$defs") | {"Problem": problem} | feedback.SCHEMAS
    found["paths"] |= _invocations() | _infer("") | _infer("/versions/{version}")
    _fix_int64_bounds(schemas)
    if has_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _fix_int64_bounds(schema: Any) -> None:
    """Write out the bounds of 64-bit integers, of which FastAPI makes floats."""
    if isinstance(schema, dict):
        if schema.get("format") == "int64":
            bounds = schema.keys() & {"minimum", "maximum"}
            schema |= {word: min(int(schema[word]), _MAX_TEXT_LENGTH) for word in bounds}
        schema = [*schema.values()]
    if isinstance(schema, list):
        for each in schema:
            _fix_int64_bounds(each)


def _invocations() -> dict[str, Any]:
    rows = {"type": "array", "items": {"type": "object"}}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": _STRING},
            "index": _ANY,
            "data": {"type": "array", "items": {"type": "array", "items": _ANY}},
        },
        "required": ["data"],
        "additionalProperties": False,
    }
    forms = {"dataframe_split": split, "dataframe_records": rows, "instances": _ANY, "inputs": _ANY}
    asked = {
        "type": "object",
        "properties": forms | {"params": {"type": "object"}},
        "additionalProperties": False,
    }
    tables = {CSV: _STRING, PARQUET: _STRING | {"format": "binary"}, ARROW: _STRING | {"format": "binary"}}
    error = {
        "type": "object",
        "properties": {"error_code": _STRING, "message": _STRING, "request_id": _STRING},
        "required": ["error_code", "message"],
    }
    return {
        "/invocations": {
            "post": {
                "tags": ["MLflow's scoring protocol"],
                "summary": "Predict, as mlflow models serve does",
                "operationId": "invocations",
                "parameters": [
                    _parameter("query", "model", "a served model, or a reference that is live"),
                    _parameter("header", "X-Model", "the same"),
                ],
                "requestBody": {"required": True, "content": _content({_JSON: asked} | tables)},
                "responses": _responses(
                    _content({_JSON: {"type": "object", "required": ["predictions"]}} | tables),
                    error,
                    (400, 404, 405, 413, 415, 500, 503, 504),
                ),
            }
        }
    }


def _infer(version: str) -> dict[str, Any]:
    asked = InferenceRequest.model_json_schema()
    asked |= {"properties": _inline_refs(asked["properties"], asked.pop("$defs"))}
    output = {"type": "object", "required": ["name", "shape", "datatype"]}
    answered = {
        "type": "object",
        "properties": {"outputs": {"type": "array", "items": output}},
        "required": ["model_name", "outputs"],
    }
    names = ("name", "version") if version else ("name",)
    error = {"type": "object", "properties": {"error": _STRING}, "required": ["error"]}
    path = f"/v2/models/{{name}}{version}/infer"
    return {
        path: {
            "post": {
                "tags": ["open inference protocol"],
                "summary": "Predict, as Triton, KServe and MLServer do",
                "operationId": f"{'pinned_' if version else ''}infer",
                "parameters": [_parameter("path", name, f"the model's {name}") for name in names],
                "requestBody": {"required": True, "content": _content({_JSON: asked})},
                "responses": _responses(
                    _content({_JSON: answered}), error, (400, 404, 405, 413, 415, 500, 503, 504)
                ),
            }
        }
    }


def _inline_refs(schema: Any, parts: Mapping[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline_refs(parts[schema["$ref"].rpartition("/")[2]], parts)
        return {key: _inline_refs(value, parts) for key, value in schema.items()}
    return [_inline_refs(each, parts) for each in schema] if isinstance(schema, list) else schema


def _parameter(where: str, name: str, description: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "in": where, "schema": _STRING, "description": description}
    if where == "path":
        found |= {"required": True, "schema": _STRING | {"pattern": problem_details.PATH_PATTERN}}
    return found


def _content(schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}


def _responses(fine: Any, error: Any, statuses: tuple[int, ...]) -> dict[str, Any]:
    failed = problem_details.documented(*statuses)
    return {
        "200": {"description": "the predictions", "content": fine},
        **{
            str(status): {"description": said["description"], "content": _content({_JSON: error})}
            for status, said in failed.items()
        },
    }
