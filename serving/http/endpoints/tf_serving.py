"""KServe's protocol v1 and TensorFlow Serving's REST API: predictions, status, metadata, list of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from serving.auth.access_rules import PREDICT, PREDICT_UNTYPED, requires
from serving.errors import UnsupportedMedia
from serving.http.endpoints.open_inference import respond
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.http_context import HttpContext, context_of
from serving.http.model_visibility import visible_models
from serving.http.problem_details import PathText, documented
from serving.http.request_body import JSON, read_untyped
from serving.models.loaded_model import LoadedModel
from serving.models.selector import ModelSelector
from serving.models.traffic_split import primary
from serving.protocols import tf_serving
from serving.protocols.tf_serving import ModelSignature

_FORM = "application/x-www-form-urlencoded"
"""What curl sends with `--data` by default, as in TensorFlow Serving's own examples."""


class TfPredictEndpoint(PredictEndpoint):
    """The endpoint `/v1/models/{name}:predict`, and Vertex AI's predict route."""

    protocol = "tf_serving"

    respond = staticmethod(respond)
    access = PREDICT_UNTYPED

    async def _read(self, context: HttpContext) -> bytes:
        limits = self._limits
        media_type, body = await read_untyped(context, limits.max_body_bytes, limits.read_timeout_seconds)
        if media_type not in (JSON, _FORM, ""):
            raise UnsupportedMedia("Send JSON, with the header Content-Type: application/json.")
        return body

    async def run(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        """Return the body of the response in pieces."""
        request = tf_serving.parse(model.contract, model.column_validator, context.body)
        output = await self._dataplane.predict_table(context, model, request.rows, request.params)
        declared = model.contract.output_columns
        return [*tf_serving.render(declared, output, is_columnar=request.is_columnar)]


class UnsupportedVerbEndpoint(PredictEndpoint):
    """The endpoints `:explain`, `:classify` and `:regress`, which no MLflow model implements."""

    respond = staticmethod(respond)

    async def __call__(self, context: HttpContext) -> None:
        """Reject the request."""
        raise HTTPException(501, "Only :predict is implemented.")


class ModelVersionStatus(BaseModel):
    """The state of a loaded version."""

    version: str
    state: Literal["AVAILABLE"] = "AVAILABLE"
    status: dict[str, str] = {"error_code": "OK", "error_message": ""}


class LoadedVersions(BaseModel):
    """The readiness of a model, as KServe returns it, and its loaded versions, as TensorFlow Serving does."""

    name: str
    ready: bool = True
    model_version_status: list[ModelVersionStatus]


class ListedModel(BaseModel):
    """A served model, as OpenAI lists it; `created` is when its live version was loaded, in Unix seconds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mlflow"


class ModelList(BaseModel):
    """The names of the served models, as KServe lists them, and the same list as OpenAI returns it."""

    models: list[str]
    object: Literal["list"] = "list"
    data: list[ListedModel]


async def use_error_format(request: Request) -> None:
    """Return errors of a route in the protocol's format."""
    context_of(request.scope).respond = respond


def router(models: ModelSelector) -> APIRouter:
    """Return the routes of the list of models, and of the status and the metadata of each."""
    routes = APIRouter(
        prefix="/v1/models",
        tags=["KServe v1 and TensorFlow Serving"],
        dependencies=[Depends(use_error_format)],
    )

    @routes.get("", summary="Names of the served models")
    @requires(PREDICT)
    async def listed(request: Request) -> ModelList:
        slots = visible_models(models, request.scope).named()
        loaded = {name: slot.live.loaded_at.timestamp() if slot.live else 0 for name, slot in slots.items()}
        data = [ListedModel(id=name, created=int(seconds)) for name, seconds in loaded.items()]
        return ModelList(models=[*slots], data=data)

    async def named(name: PathText, request: Request) -> LoadedModel:
        return visible_models(models, request.scope).lease(name, primary)

    async def pinned(name: PathText, version: PathText, request: Request) -> LoadedModel:
        return visible_models(models, request.scope).version(name, version)

    async def labelled(name: PathText, label: PathText, request: Request) -> LoadedModel:
        return visible_models(models, request.scope).labelled(name, label)

    addressed = Depends(named)

    @routes.get("/{name}", summary="Readiness of a model and its loaded versions", responses=_errors(503))
    @requires(PREDICT)
    async def status(request: Request, model: LoadedModel = addressed) -> LoadedVersions:
        versions = visible_models(models, request.scope).loaded(model.version.name)
        return _status(model.version.name, [version.version.label for version in versions])

    _add_metadata(routes, "/{name}", "a model", named)
    for path, which, select in (
        ("/{name}/versions/{version}", "a loaded version", pinned),
        ("/{name}/labels/{label}", "the live version with an alias or stage", labelled),
    ):
        _add_version_status(routes, path, which, select)
        _add_metadata(routes, path, which, select)
    return routes


def _add_version_status(routes: APIRouter, path: str, which: str, select: Callable[..., Any]) -> None:
    addressed = Depends(select)

    @routes.get(path, summary=f"Readiness of {which}", responses=_errors(503))
    @requires(PREDICT)
    async def version_status(model: LoadedModel = addressed) -> LoadedVersions:
        return _status(model.version.name, [model.version.label])


def _add_metadata(routes: APIRouter, path: str, which: str, select: Callable[..., Any]) -> None:
    addressed = Depends(select)

    @routes.get(f"{path}/metadata", summary=f"Metadata of {which}", responses=_errors(503))
    @requires(PREDICT)
    async def metadata(model: LoadedModel = addressed) -> ModelSignature:
        return tf_serving.model_metadata(model.version.name, model.version.label, model.contract)


def _status(name: str, versions: Sequence[str]) -> LoadedVersions:
    available = [ModelVersionStatus(version=version) for version in dict.fromkeys(versions)]
    return LoadedVersions(name=name, model_version_status=available)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route for 400, 404 and these statuses.

    The server itself rejects a malformed path, as a problem.
    """
    schema = {"schema": {"$ref": "#/components/schemas/InferenceError"}}
    responses: dict[int | str, dict[str, Any]] = documented(400, 404, *statuses)
    for response in responses.values():
        response["content"] |= {JSON: schema}
    return responses
