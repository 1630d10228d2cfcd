"""Parsing and rendering of the Open Inference Protocol, version 2, for one contract.

https://github.com/kserve/open-inference-protocol defines the protocol; KServe, MLServer and Triton use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import compute
from pydantic import BaseModel

from serving import __version__
from serving.codecs import model_output
from serving.codecs.model_input import InputKind
from serving.codecs.model_output import OutputForm
from serving.codecs.output_columns import column_of, columns
from serving.codecs.output_json import OutputColumn
from serving.contract.column_validator import ColumnValidator, Given
from serving.contract.contract import Contract
from serving.errors import ModelFailed, Unprocessable
from serving.protocols.tensors import DATATYPES, InferenceRequest, Tensor, tensor
from serving.types.column_type import ColumnType
from serving.types.nested import Nested, to_python
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor as TensorType

UNNAMED = "output-0"
"""The name of an output that has no name in the signature."""
_PLATFORM = "mlflow_pyfunc"
_OUTPUT_DATATYPES = {"number": "FP64", "integer": "INT64", "boolean": "BOOL"}


# -- metadata


class ServerMetadata(BaseModel):
    """The name, version and protocol extensions of this server."""

    name: str = "mlflow-serving-front"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data", "model_repository"]


class TensorMetadata(BaseModel):
    """An input or an output; a dimension of -1 has any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The inputs and outputs of a model, and its loaded versions."""

    name: str
    versions: list[str]
    platform: str = _PLATFORM
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def model_metadata(name: str, contract: Contract, versions: Iterable[str | None]) -> ModelMetadata:
    """Return the metadata of a model with this contract and these loaded versions."""
    return ModelMetadata(
        name=name,
        versions=[*dict.fromkeys(version for version in versions if version)],
        inputs=[input_metadata(column.name, column.kind) for column in contract.columns],
        outputs=[output_metadata(column) for column in contract.output_columns],
    )


def input_metadata(name: str, type_: ColumnType) -> TensorMetadata:
    """Return the metadata of an input column."""
    if isinstance(type_, TensorType):
        arrow = pa.string() if type_.dtype in ("str", "object") else pa.from_numpy_dtype(type_.dtype)
        return TensorMetadata(name=name, datatype=DATATYPES[arrow], shape=[-1, *type_.shape])
    arrow = type_.arrow if isinstance(type_, Scalar) else pa.string()
    return TensorMetadata(name=name, datatype=DATATYPES.get(arrow, "BYTES"), shape=[-1, 1])


def output_metadata(column: OutputColumn) -> TensorMetadata:
    """Return the metadata of an output column."""
    datatype = _OUTPUT_DATATYPES.get(column.kind, "BYTES")
    return TensorMetadata(name=column.name or UNNAMED, datatype=datatype, shape=[-1, *column.shape])


# -- inputs


def parse_rows(
    contract: Contract, validator: ColumnValidator, request: InferenceRequest, inputs: list[Tensor]
) -> tuple[pa.RecordBatch, Mapping[str, Any]]:
    """Return the rows and the model parameters of a request.

    Raises:
        Unprocessable: the inputs or the parameters do not match the contract.
    """
    rows = validator.validate(_columns(contract, inputs))
    names = {param.name for param in contract.params} & request.parameters.keys()
    return rows, contract.read_params({name: request.parameters[name] for name in names})


def _columns(contract: Contract, tensors: list[Tensor]) -> dict[str, Given]:
    """Return the columns of the contract, from one tensor per column or from one tensor for all of them."""
    declared = contract.columns
    types = {column.name: column.kind for column in declared}
    named = {tensor.name: tensor for tensor in tensors}
    if not named.keys() & types.keys() or (contract.form is InputKind.ARRAY and len(tensors) == 1):
        if len(tensors) == len(declared) == 1:
            named = {declared[0].name: tensors[0]}
        elif len(tensors) == 1 and tensors[0].shape[1:] == (len(declared),):
            flat, width = tensors[0].flat, len(declared)
            named = {
                column.name: Tensor(column.name, tensors[0].shape[:1], flat[index::width])
                for index, column in enumerate(declared)
            }
    if unknown := sorted(named.keys() - types.keys()):
        raise Unprocessable(f"The model has no input {unknown[0][:50]!r}: send {', '.join(types)}.")
    return {name: _to_column(types[name], tensor) for name, tensor in named.items()}


def _to_column(type_: ColumnType, sent: Tensor) -> Given:
    is_column = len(sent.shape) == 1 or sent.shape[1:] == (1,)
    wants_bytes = isinstance(type_, Scalar) and pa.types.is_binary(type_.arrow)
    flat = sent.flat
    if pa.types.is_binary(flat.type) and (not wants_bytes or sent.parameters.get("content_type") == "base64"):
        try:
            flat = flat.cast(pa.string())
        except pa.ArrowInvalid:
            raise Unprocessable(f"Input {sent.name[:50]!r} is no UTF-8.") from None
    if isinstance(type_, Nested) and is_column and pa.types.is_string(flat.type):
        return [*map(_parse_json, flat.to_pylist())]
    if isinstance(type_, Scalar) and is_column:
        return flat
    if isinstance(type_, TensorType) and not type_.shape and is_column:
        return flat
    return Tensor(sent.name, sent.shape, flat).rows


def _parse_json(text: str | None) -> Any:
    """Return the value of a text that is JSON, other texts as they are."""
    try:
        return None if text is None else orjson.loads(text)
    except ValueError:
        return text


# -- outputs


def render(
    contract: Contract, request: InferenceRequest, output: pa.RecordBatch
) -> tuple[list[Tensor], list[bool]]:
    """Return the output tensors that a request selects, and for each whether to send it as raw bytes.

    Raises:
        Unprocessable: the request selects an output that the model does not have.
        ModelFailed: an output cannot be represented as a tensor.
    """
    tensors = _outputs(contract, output)
    default = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return tensors, [default] * len(tensors)
    named = {tensor.name: tensor for tensor in tensors}
    for wanted in request.outputs:
        if wanted.name not in named:
            raise Unprocessable(f"The model has no output {wanted.name[:50]!r}: it has {', '.join(named)}.")
        if "classification" in wanted.parameters:
            raise Unprocessable("The classification extension is not supported.")
    binary = [bool(wanted.parameters.get("binary_data", default)) for wanted in request.outputs]
    return [named[wanted.name] for wanted in request.outputs], binary


def _outputs(contract: Contract, table: pa.RecordBatch) -> list[Tensor]:
    form = model_output.form(table)
    if form in (OutputForm.RECORDS, OutputForm.COLUMNS):
        optional = {column.name for column in contract.output_columns if not column.required}
        return [
            tensor(name, _nan_to_null(column) if name in optional else column)
            for name, column in zip(table.schema.names, table.columns, strict=True)
        ]
    declared = [column.name for column in contract.output_columns]
    if form is OutputForm.WHOLE and (fields := _fields(table.column(0), declared)):
        return fields
    if form is OutputForm.VALUES and len(declared) > 1:
        with suppress(ModelFailed):  # the output has other columns than the signature
            return [
                tensor(str(name), column)
                for name, column in zip(declared, columns(table, declared), strict=True)
            ]
    only = declared[0] if len(declared) == 1 else None
    return [tensor(only or UNNAMED, table.column(0))]


def _fields(whole: pa.Array, declared: list[str | None]) -> list[Tensor]:
    """Return the fields of an output object as tensors if they are the declared outputs, else nothing."""
    (value,) = to_python(whole)
    if not isinstance(value, dict) or not value or {*value} != {*declared}:
        return []
    return [
        tensor(name, column_of(field if isinstance(field, list) else [field]))
        for name, field in value.items()
    ]


def _nan_to_null(column: pa.Array) -> pa.Array:
    """Return a column with nulls in place of NaN, which is how pandas represents a missing number."""
    if not pa.types.is_floating(column.type):
        return column
    return compute.if_else(compute.is_nan(column), None, column)
