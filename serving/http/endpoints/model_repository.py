"""What the Open Inference Protocol tells of the server and its models."""

from __future__ import annotations

import pyarrow as pa
from fastapi import APIRouter, Request
from pydantic import BaseModel

from serving import __version__
from serving.auth.access_rules import GENERAL, PREDICT, PROBE, requires
from serving.codecs.json_values import OutputColumn
from serving.http.endpoints.open_inference import UNNAMED
from serving.http.model_visibility import HIDDEN_REASON, sees_reasons, visible_models
from serving.http.problem_details import PathText, documented
from serving.models.loaded_model import LoadedModel
from serving.models.selector import ModelSelector
from serving.models.slot import RECOVERING, Slot
from serving.models.traffic_split import primary
from serving.protocols.tensors import DATATYPES
from serving.types.column_type import ColumnType
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor

_PLATFORM = "mlflow_pyfunc"


class ServerMetadata(BaseModel):
    """What this server is."""

    name: str = "mlflow-serving-front"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data", "model_repository"]


class TensorMetadata(BaseModel):
    """An input or an output; -1 in its shape is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and answers."""

    name: str
    versions: list[str]
    platform: str = _PLATFORM
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Whether a model is live."""

    name: str
    ready: bool


class Indexed(BaseModel):
    """A model in the repository."""

    name: str
    version: str | None
    state: str
    reason: str


def router(models: ModelSelector) -> APIRouter:
    """The routes that tell of the server and its models."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @routes.get("", summary="What this server is")
    @requires(GENERAL)
    async def server() -> ServerMetadata:
        return ServerMetadata()

    @routes.get("/health/live", summary="Does the process live?")
    @requires(PROBE)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready", summary="Is every model live?", responses=documented(503))
    @requires(PROBE)
    async def ready() -> dict[str, bool]:
        for slot in models.slots:
            if slot.required:
                slot.check_serving()
        return {"ready": True}

    @routes.get(
        "/models/{name}", summary="What a model takes and answers", responses=documented(400, 404, 503)
    )
    @requires(PREDICT)
    async def model(name: PathText, request: Request) -> ModelMetadata:
        visible = visible_models(models, request.scope)
        return metadata(visible, visible.lease(name, primary))

    @routes.get("/models/{name}/versions/{version}", summary="The same", responses=documented(400, 404))
    @requires(PREDICT)
    async def version(name: PathText, version: PathText, request: Request) -> ModelMetadata:
        visible = visible_models(models, request.scope)
        return metadata(visible, visible.version(name, version))

    @routes.get("/models/{name}/ready", summary="Is a model live?", responses=documented(400, 404, 503))
    @requires(PREDICT)
    async def model_ready(name: PathText, request: Request) -> ModelReady:
        leased = visible_models(models, request.scope).lease(name, primary)
        return ModelReady(name=leased.version.name, ready=True)

    @routes.get("/models/{name}/versions/{version}/ready", summary="The same", responses=documented(400, 404))
    @requires(PREDICT)
    async def version_ready(name: PathText, version: PathText, request: Request) -> ModelReady:
        leased = visible_models(models, request.scope).version(name, version)
        return ModelReady(name=leased.version.name, ready=True)

    @routes.post("/repository/index", summary="What is served")
    @requires(PREDICT)
    async def index(request: Request) -> list[Indexed]:
        visible = visible_models(models, request.scope)
        return [_indexed(slot, sees_reasons(request.scope)) for slot in visible.named().values()]

    return routes


def _indexed(slot: Slot, in_full: bool) -> Indexed:
    version = slot.live.version.version if slot.live else None
    reason = RECOVERING if slot.live else slot.reason if in_full else HIDDEN_REASON
    reason = "" if slot.is_serving else reason
    state = "READY" if slot.is_serving else "UNAVAILABLE"
    return Indexed(name=slot.reference.name, version=version, state=state, reason=reason)


def metadata(models: ModelSelector, loaded: LoadedModel) -> ModelMetadata:
    """What a loaded version takes and answers."""
    name, contract = loaded.version.name, loaded.contract
    versions = [each.version.version for each in models.loaded(name) if each.version.version]
    return ModelMetadata(
        name=name,
        versions=[*dict.fromkeys(versions)],
        inputs=[_input(column.name, column.kind) for column in contract.columns],
        outputs=[_output(value) for value in contract.output_columns],
    )


def _input(name: str, kind: ColumnType) -> TensorMetadata:
    if isinstance(kind, Tensor):
        arrow = pa.string() if kind.dtype in ("str", "object") else pa.from_numpy_dtype(kind.dtype)
        return TensorMetadata(name=name, datatype=DATATYPES[arrow], shape=[-1, *kind.shape])
    arrow = kind.arrow if isinstance(kind, Scalar) else pa.string()
    return TensorMetadata(name=name, datatype=DATATYPES.get(arrow, "BYTES"), shape=[-1, 1])


_OUTPUTS = {"number": "FP64", "integer": "INT64", "boolean": "BOOL"}


def _output(value: OutputColumn) -> TensorMetadata:
    datatype = _OUTPUTS.get(value.kind, "BYTES")
    return TensorMetadata(name=value.name or UNNAMED, datatype=datatype, shape=[-1, *value.shape])
