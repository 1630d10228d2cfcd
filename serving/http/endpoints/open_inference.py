"""The Open Inference Protocol over HTTP: inference, metadata and the index of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from serving.auth.access_rules import GENERAL, PREDICT, PROBE, requires
from serving.error_statuses import one_line
from serving.errors import FieldError, Unprocessable, UnsupportedMedia
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.http_context import HttpContext
from serving.http.model_visibility import HIDDEN_REASON, sees_reasons, visible_models
from serving.http.problem_details import PathText, documented
from serving.http.request_body import JSON, read_untyped
from serving.models.loaded_model import LoadedModel
from serving.models.selector import ModelSelector
from serving.models.slot import RECOVERING, Slot
from serving.models.traffic_split import primary
from serving.protocols import open_inference
from serving.protocols.open_inference import ModelMetadata, ServerMetadata
from serving.protocols.tensors import encode, parse

_JSON_LENGTH = b"inference-header-content-length"
_OCTETS = "application/octet-stream"


def respond(
    status: int,
    detail: str,
    request_id: str,
    *,
    faults: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error in the protocol's format; what does not match the contract is 400."""
    body = {"error": one_line(detail, faults), "request_id": request_id}
    return Response(orjson.dumps(body), 400 if status == 422 else status, dict(headers or {}), JSON)


class InferEndpoint(PredictEndpoint):
    """The endpoint `/v2/models/{name}/infer`."""

    protocol = "v2"

    respond = staticmethod(respond)

    async def _read(self, context: HttpContext) -> bytes:
        limits = self._limits
        media_type, body = await read_untyped(context, limits.max_body_bytes, limits.read_timeout_seconds)
        length = next((value for name, value in context.headers if name == _JSON_LENGTH), None)
        if media_type not in ("", JSON, _OCTETS) or (length is None and media_type == _OCTETS):
            raise UnsupportedMedia("Send JSON, or JSON and bytes with Inference-Header-Content-Length.")
        if length is not None and not (length.isdigit() and len(length) < 12):
            raise Unprocessable("Inference-Header-Content-Length is not a number of bytes.")
        context.media_type = None if length is None else int(length)
        return body

    async def run(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        """Return the JSON of the response, and the raw bytes of outputs that are requested so."""
        request, inputs = parse(context.body, context.media_type)
        rows, params = open_inference.parse_rows(model.contract, model.column_validator, request, inputs)
        output = await self._dataplane.predict_table(context, model, rows, params)
        outputs, binary = open_inference.render(model.contract, request, output)
        head = {"model_name": model.version.name, "model_version": model.version.version}
        if request.id or model.cache is None:  # a cached response is used for several requests
            head["id"] = request.id or context.request_id
        pieces, length = encode(head, outputs, binary)
        if length is not None:
            context.content_headers = (
                (b"content-type", _OCTETS.encode()),
                (_JSON_LENGTH, str(length).encode()),
            )
        return pieces


class ModelReady(BaseModel):
    """The readiness of a model."""

    name: str
    ready: bool


class IndexedModel(BaseModel):
    """A model in the repository index."""

    name: str
    version: str | None
    state: str
    reason: str


def router(models: ModelSelector) -> APIRouter:
    """Return the routes of the protocol's metadata, health and repository index."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @routes.get("", summary="Metadata of the server")
    @requires(GENERAL)
    async def server() -> ServerMetadata:
        return ServerMetadata()

    @routes.get("/health/live", summary="Liveness of the process")
    @requires(PROBE)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready", summary="Readiness of all required models", responses=documented(503))
    @requires(PROBE)
    async def ready() -> dict[str, bool]:
        models.check_required()
        return {"ready": True}

    @routes.get("/models/{name}", summary="Metadata of a model", responses=documented(400, 404, 503))
    @requires(PREDICT)
    async def model(name: PathText, request: Request) -> ModelMetadata:
        visible = visible_models(models, request.scope)
        return metadata(visible, visible.lease(name, primary))

    @routes.get(
        "/models/{name}/versions/{version}",
        summary="Metadata of a loaded version",
        responses=documented(400, 404),
    )
    @requires(PREDICT)
    async def version(name: PathText, version: PathText, request: Request) -> ModelMetadata:
        visible = visible_models(models, request.scope)
        return metadata(visible, visible.version(name, version))

    @routes.get("/models/{name}/ready", summary="Readiness of a model", responses=documented(400, 404, 503))
    @requires(PREDICT)
    async def model_ready(name: PathText, request: Request) -> ModelReady:
        leased = visible_models(models, request.scope).lease(name, primary)
        return ModelReady(name=leased.version.name, ready=True)

    @routes.get(
        "/models/{name}/versions/{version}/ready",
        summary="Readiness of a loaded version",
        responses=documented(400, 404),
    )
    @requires(PREDICT)
    async def version_ready(name: PathText, version: PathText, request: Request) -> ModelReady:
        leased = visible_models(models, request.scope).version(name, version)
        return ModelReady(name=leased.version.name, ready=True)

    @routes.post("/repository/index", summary="Index of the served models")
    @requires(PREDICT)
    async def index(request: Request) -> list[IndexedModel]:
        visible = visible_models(models, request.scope)
        return [_indexed(slot, sees_reasons(request.scope)) for slot in visible.named().values()]

    return routes


def _indexed(slot: Slot, in_full: bool) -> IndexedModel:
    version = slot.live.version.version if slot.live else None
    reason = RECOVERING if slot.live else slot.reason if in_full else HIDDEN_REASON
    reason = "" if slot.is_serving else reason
    state = "READY" if slot.is_serving else "UNAVAILABLE"
    return IndexedModel(name=slot.reference.name, version=version, state=state, reason=reason)


def metadata(models: ModelSelector, model: LoadedModel) -> ModelMetadata:
    """Return the metadata of a loaded version."""
    name = model.version.name
    versions = [loaded.version.version for loaded in models.loaded(name)]
    return open_inference.model_metadata(name, model.contract, versions)
