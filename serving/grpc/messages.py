"""Conversion between gRPC messages and the requests and tensors of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from serving.errors import Malformed, Unprocessable
from serving.grpc import inference_pb2
from serving.protocols.tensors import (
    DATATYPES,
    InferenceRequest,
    InputTensor,
    Tensor,
    from_bytes,
    in_bytes,
    invalid_tensor,
    kind,
)

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of `InferTensorContents` that holds the elements of a datatype."""


def from_request(message: inference_pb2.ModelInferRequest) -> tuple[InferenceRequest, list[Tensor]]:
    """Return the request of a message and its input tensors.

    Raises:
        Malformed: the number of raw contents differs from the number of inputs.
        Unprocessable: the request violates the protocol, or the elements of a tensor do not match its shape
            and datatype.
    """
    inputs = [
        {"name": tensor.name, "shape": [*tensor.shape], "datatype": tensor.datatype} | _parameters(tensor)
        for tensor in message.inputs
    ]
    outputs = [{"name": output.name} | _parameters(output) for output in message.outputs]
    fields = {"id": message.id or None, "inputs": inputs, "outputs": outputs} | _parameters(message)
    try:
        request = InferenceRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Unprocessable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    raw = message.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise Malformed(f"There are {len(raw)} raw contents for {len(inputs)} inputs.")
    if len({tensor.name for tensor in request.inputs}) < len(inputs):
        raise Unprocessable("An input is named twice.")
    if raw:
        arrays = [from_bytes(tensor, data) for tensor, data in zip(request.inputs, raw, strict=True)]
    else:
        arrays = [
            _from_contents(tensor, sent.contents)
            for tensor, sent in zip(request.inputs, message.inputs, strict=True)
        ]
    return request, [
        Tensor(tensor.name, tuple(tensor.shape), array, tensor.parameters)
        for tensor, array in zip(request.inputs, arrays, strict=True)
    ]


def to_response(
    name: str, version: str, request_id: str, tensors: Sequence[Tensor]
) -> inference_pb2.ModelInferResponse:
    """Return a message with the tensors as raw contents.

    Raises:
        ModelFailed: a tensor contains a null, which raw contents cannot represent.
    """
    outputs = [
        {"name": tensor.name, "shape": tensor.shape, "datatype": DATATYPES.get(tensor.flat.type, "BYTES")}
        for tensor in tensors
    ]
    raw = [in_bytes(tensor.flat) for tensor in tensors]
    return inference_pb2.ModelInferResponse(
        model_name=name, model_version=version, id=request_id, outputs=outputs, raw_output_contents=raw
    )


def _parameters(message: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in message.parameters.items():
        if (choice := parameter.WhichOneof("parameter_choice")) is None:
            raise Unprocessable(f"Parameter {name[:50]!r} has no value.")
        values[name] = getattr(parameter, choice)
    return {"parameters": values}


def _from_contents(tensor: InputTensor, contents: inference_pb2.InferTensorContents) -> pa.Array:
    arrow = kind(tensor)
    if tensor.datatype not in _CONTENTS:
        raise invalid_tensor(tensor, f"is of datatype {tensor.datatype}, which goes as raw contents only")
    values = getattr(contents, _CONTENTS[tensor.datatype])
    if len(values) != prod(tensor.shape):
        raise invalid_tensor(tensor, f"has {len(values)} values, which is not the shape {tensor.shape}")
    try:
        return pa.array(values, pa.binary() if tensor.datatype == "BYTES" else arrow)
    except pa.ArrowException:
        raise invalid_tensor(tensor, f"has values that are no {tensor.datatype}") from None
