"""The predict API that KServe (protocol v1), TensorFlow Serving (REST) and Vertex AI share, for one contract.

https://www.tensorflow.org/tfx/serving/api_rest defines the row format (`instances`, `predictions`) and the
columnar format (`inputs`, `outputs`). https://kserve.github.io/website defines KServe's protocol v1, which
has the row format only. Vertex AI adds `parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
from pydantic import BaseModel

from serving.codecs import model_output
from serving.codecs.model_input import InputKind
from serving.codecs.model_output import OutputForm
from serving.codecs.output_json import OutputColumn
from serving.contract.column_validator import ColumnValidator
from serving.contract.contract import Contract
from serving.errors import ModelFailed, Unprocessable
from serving.protocols import open_inference
from serving.protocols.mlflow_scoring import parse_object
from serving.protocols.mlflow_scoring_output import predictions_json
from serving.protocols.open_inference import TensorMetadata
from serving.types.columns import Column
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor

SIGNATURE = "serving_default"
"""The only signature of a model, under TensorFlow's name of the default one."""
_METHOD = "tensorflow/serving/predict"
_FORMS = ("instances", "inputs")
_PARAMS = ("parameters", "params")
_TYPES = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
"""TensorFlow's name of each datatype of the Open Inference Protocol."""
Columns = dict[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """The rows and model parameters of a body, and whether it has the columnar format."""

    rows: pa.RecordBatch
    params: Mapping[str, Any]
    is_columnar: bool


# -- requests


def parse(contract: Contract, validator: ColumnValidator, body: bytes) -> PredictRequest:
    """Return the rows and the model parameters of a body.

    Raises:
        Malformed: the body is not JSON, or repeats a field.
        BodyTooLarge: there are more rows than the contract allows.
        Unprocessable: the body violates the protocol, or does not match the contract.
    """
    document = parse_object(body)
    forms = [form for form in _FORMS if form in document]
    params = [name for name in _PARAMS if name in document]
    unknown = document.keys() - {*_FORMS, *_PARAMS, "signature_name"}
    if len(forms) != 1 or len(params) > 1 or unknown:
        fields = ", ".join(sorted(name[:50] for name in document)) or "nothing"
        _refuse(
            f"Send instances or inputs, and parameters or signature_name if need be; the body has {fields}."
        )
    if document.get("signature_name") not in (None, "", SIGNATURE):
        _refuse(f"The model has no signature of that name: send {SIGNATURE} or omit signature_name.")
    content = document[forms[0]]
    is_columnar = forms[0] == "inputs"
    rows = (
        parse_inputs(contract, validator, content)
        if is_columnar
        else parse_instances(contract, validator, content)
    )
    sent = document[params[0]] if params else None
    return PredictRequest(rows, contract.read_params({} if sent is None else sent), is_columnar)


def parse_instances(contract: Contract, validator: ColumnValidator, rows: Any) -> pa.RecordBatch:
    """Return the rows of a list of values, of lists in the order of the columns, or of objects.

    Raises:
        BodyTooLarge: there are more rows than the contract allows.
        Unprocessable: the rows do not match the contract.
    """
    if not isinstance(rows, list) or not rows:
        _refuse("instances should be a list of at least one row.")
    if contract.form is InputKind.LIST:
        return validator.validate({contract.columns[0].name: rows})
    if any(isinstance(row, dict) for row in rows) and not _is_binary(contract, rows):
        if not all(isinstance(row, dict) for row in rows):
            _refuse("instances should be all objects, or none.")
        names = [*dict.fromkeys(name for row in rows for name in row)]
        columns = _known(contract, {name: [row.get(name) for row in rows] for name in names})
        gaps = contract.layout.gaps(rows) if contract.form is InputKind.FRAME else {}
        return validator.validate(columns, gaps=gaps)
    if len(contract.columns) == 1:
        return validator.validate(_only(contract, rows))
    return validator.validate(_in_order(contract, rows))


def parse_inputs(contract: Contract, validator: ColumnValidator, inputs: Any) -> pa.RecordBatch:
    """Return the rows of an object of columns, or of the values of the only column; raises as `parse`."""
    if isinstance(inputs, dict) and contract.form is not InputKind.LIST:
        for name, values in inputs.items():
            if not isinstance(values, list):
                _refuse(f"inputs.{name[:50]} should be a list with one value for each row.")
        return validator.validate(_known(contract, inputs))
    if not isinstance(inputs, list):
        _refuse("inputs should be a list of values, or an object of lists.")
    if len(contract.columns) != 1:
        _refuse(f"This model has {len(contract.columns)} inputs: inputs should be an object that names them.")
    return validator.validate(_only(contract, inputs))


def _known(contract: Contract, sent: Mapping[str, Sequence[Any]]) -> Columns:
    """Return columns by name; a misspelt optional column must not pass as an absent one."""
    declared = {column.name: column for column in contract.columns}
    if unknown := sorted(sent.keys() - declared.keys()):
        _refuse(f"The model has no input {unknown[0][:50]!r}: send {', '.join(declared)}.")
    if not sent:
        _refuse(f"The rows have no values: send {', '.join(declared)}.")
    return {name: _unpacked(declared[name], values) for name, values in sent.items()}


def _only(contract: Contract, values: Sequence[Any]) -> Columns:
    """Return the only column; each value of a scalar column may be in a list of its own."""
    (column,) = contract.columns
    if isinstance(column.kind, Scalar) and all(isinstance(value, list) for value in values):
        return _in_order(contract, values)
    return {column.name: _unpacked(column, values)}


def _in_order(contract: Contract, rows: Sequence[Any]) -> Columns:
    """Return the columns of rows that are lists in the order of the columns."""
    names = [column.name for column in contract.columns]
    if contract.form is InputKind.ARRAYS:
        _refuse(f"This model has {len(names)} inputs: each instance should be an object that names them.")
    if any(not isinstance(row, list) or len(row) != len(names) for row in rows):
        _refuse(
            f"Each instance should be an object, or a list of {len(names)} values in this order: "
            f"{', '.join(names)}."
        )
    columns = zip(contract.columns, zip(*rows, strict=True), strict=True)
    return {column.name: _unpacked(column, values) for column, values in columns}


def _is_binary(contract: Contract, rows: Sequence[Any]) -> bool:
    """Return whether the rows are TensorFlow Serving's binary values, `{"b64": text}`, of the only column."""
    return len(contract.columns) == 1 and _holds_bytes(contract.columns[0]) and all(map(_is_packed, rows))


def _holds_bytes(column: Column) -> bool:
    return isinstance(column.kind, Scalar) and pa.types.is_binary(column.kind.arrow)


def _is_packed(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _unpacked(column: Column, values: Sequence[Any]) -> list[Any]:
    """Return the values of a column, base64 texts in place of `{"b64": text}`."""
    if not _holds_bytes(column):
        return [*values]
    return [value["b64"] if _is_packed(value) else value for value in values]


def _refuse(detail: str) -> NoReturn:
    raise Unprocessable(detail)


# -- responses


def render(declared: Sequence[OutputColumn], table: pa.RecordBatch, *, is_columnar: bool) -> Iterator[bytes]:
    """Yield the JSON of a response in pieces.

    The name of the only output is omitted, as TensorFlow Serving does. An output that is not one value per
    row and column is written as `/invocations` writes it.

    Raises:
        ModelFailed: the output has a number that JSON cannot represent, or names a column twice.
    """
    names = table.schema.names
    if len({*names}) < len(names):
        raise ModelFailed("its output names a column twice")
    form = model_output.form(table)
    if form in (OutputForm.RECORDS, OutputForm.COLUMNS):
        listed = OutputForm.COLUMNS if is_columnar else OutputForm.RECORDS
        table = model_output.with_form(table, OutputForm.VALUES if len(names) == 1 else listed)
        declared = [column for column in declared if column.name in names] or declared
    yield b'{"outputs":' if is_columnar else b'{"predictions":'
    yield from predictions_json(declared, table)
    yield b"}"


# -- metadata


class Dimension(BaseModel):
    """A dimension of a tensor; -1 is any size."""

    size: str
    name: str = ""


class TensorShape(BaseModel):
    """The shape of a tensor."""

    dim: list[Dimension]
    unknown_rank: bool = False


class TensorInfo(BaseModel):
    """An input or an output."""

    dtype: str
    tensor_shape: TensorShape
    name: str


class SignatureDef(BaseModel):
    """The inputs and outputs of a model, by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    method_name: str = _METHOD


class SignatureDefMap(BaseModel):
    """The signatures of a model, by name."""

    signature_def: dict[str, SignatureDef]


class ModelSpec(BaseModel):
    """A model version."""

    name: str
    signature_name: str = ""
    version: str


class ModelSignature(BaseModel):
    """The metadata of a model version, as TensorFlow Serving returns them."""

    model_spec: ModelSpec
    metadata: dict[str, SignatureDefMap]


def model_metadata(name: str, version: str, contract: Contract) -> ModelSignature:
    """Return the metadata of a model version with this contract."""
    inputs = [_input_info(column) for column in contract.columns]
    outputs = [_info(open_inference.output_metadata(column)) for column in contract.output_columns]
    signature = SignatureDef(
        inputs={info.name: info for info in inputs}, outputs={info.name: info for info in outputs}
    )
    return ModelSignature(
        model_spec=ModelSpec(name=name, version=version),
        metadata={"signature_def": SignatureDefMap(signature_def={SIGNATURE: signature})},
    )


def _input_info(column: Column) -> TensorInfo:
    found = open_inference.input_metadata(column.name, column.kind)
    if not isinstance(column.kind, Tensor):
        found.shape = [-1]  # one value per row, where the Open Inference Protocol has a column
    return _info(found)


def _info(found: TensorMetadata) -> TensorInfo:
    shape = TensorShape(dim=[Dimension(size=str(size)) for size in found.shape])
    return TensorInfo(dtype=_TYPES[found.datatype], tensor_shape=shape, name=found.name)
