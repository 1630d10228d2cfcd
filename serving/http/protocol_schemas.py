"""Bodies of other servers' protocols, for the OpenAPI document; these protocols have parsers of their own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from serving.http.problem_details import Problem
from serving.protocols.tensors import InferenceRequest

REF = "#/components/schemas/{model}"
_Absent = Field(default_factory=lambda: None)
"""Marks a field as optional without a default in the schema."""


class SplitFrame(BaseModel):
    """A data frame in pandas' orientation `split`."""

    model_config = ConfigDict(extra="forbid")

    columns: Annotated[list[str], _Absent]
    index: Annotated[Any, _Absent]
    data: list[list[Any]]


class InvocationsRequest(BaseModel):
    """The body of a request to `/invocations`: one of the four forms, and model parameters."""

    model_config = ConfigDict(extra="forbid")

    dataframe_split: Annotated[SplitFrame, _Absent]
    dataframe_records: Annotated[list[dict[str, Any]], _Absent]
    instances: Annotated[Any, _Absent]
    inputs: Annotated[Any, _Absent]
    params: Annotated[dict[str, Any], _Absent]


class ScoreRequest(InvocationsRequest):
    """The body of a request to `/score`: the same, or `input_data` as Azure ML takes it."""

    input_data: Annotated[Any, _Absent]


class InvocationsResponse(BaseModel):
    """The predictions of a model."""

    predictions: Any


class InvocationsError(BaseModel):
    """An error in MLflow's format."""

    error_code: str
    message: str
    request_id: Annotated[str, _Absent]


class OutputTensor(BaseModel):
    """An output of a model; its data follow the JSON as raw bytes if the request selects that."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Annotated[dict[str, Any], _Absent]
    data: Annotated[list[Any], _Absent]


class InferenceResponse(BaseModel):
    """The outputs of a model."""

    model_name: str
    model_version: Annotated[str | None, _Absent]
    id: Annotated[str, _Absent]
    outputs: list[OutputTensor]


class InferenceError(BaseModel):
    """An error in the format of the Open Inference Protocol."""

    error: str
    request_id: Annotated[str, _Absent]


class TfPredictRequest(BaseModel):
    """The body of a request to KServe's protocol v1 or TensorFlow Serving: rows, or columns."""

    model_config = ConfigDict(extra="forbid")

    instances: Annotated[list[Any], _Absent]
    inputs: Annotated[list[Any] | dict[str, list[Any]], _Absent]
    parameters: Annotated[dict[str, Any], _Absent]
    params: Annotated[dict[str, Any], _Absent]
    signature_name: Annotated[str, _Absent]


class TfPredictResponse(BaseModel):
    """The predictions of rows, or the outputs of columns."""

    predictions: Annotated[Any, _Absent]
    outputs: Annotated[Any, _Absent]


SCHEMAS: dict[str, Any] = models_json_schema(
    [
        (model, "validation")
        for model in (
            Problem,
            InvocationsRequest,
            ScoreRequest,
            InvocationsResponse,
            InvocationsError,
            InferenceRequest,
            InferenceResponse,
            InferenceError,
            TfPredictRequest,
            TfPredictResponse,
        )
    ],
    ref_template=REF,
)[1]["$defs"]
"""The schemas by name."""


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """Return a reference to the schema of a model."""
    return {"$ref": REF.format(model=model.__name__)}
