"""The protocol's messages ⇄ requests and tensors, as they are over HTTP too."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
from pydantic import ValidationError

from serving.errors import Malformed, Unprocessable
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


def _generated() -> tuple[Any, Any]:
    """The classes of the messages and of the service, made of the protocol's definition.

    It is looked up along `sys.path`, where an editable installation has no folder of its own.
    """
    root = str(Path(__file__).parents[2])
    sys.path.append(root)
    try:
        return grpc.protos_and_services("serving/grpc/inference.proto")  # type: ignore[no-any-return]
    finally:
        sys.path.remove(root)


protos, services = _generated()

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


def from_request(message: Any) -> tuple[InferenceRequest, list[Tensor]]:
    """A request and its inputs, of a `ModelInferRequest`.

    Raises:
        Malformed: the raw contents are not one for each input.
        Unprocessable: it is no request of the protocol, or a tensor has not the values of its shape and type.
    """
    inputs = [
        {"name": each.name, "shape": [*each.shape], "datatype": each.datatype} | _with_parameters(each)
        for each in message.inputs
    ]
    outputs = [{"name": each.name} | _with_parameters(each) for each in message.outputs]
    asked = {"id": message.id or None, "inputs": inputs, "outputs": outputs} | _with_parameters(message)
    try:
        request = InferenceRequest.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Unprocessable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise Malformed(f"There are {len(raw)} raw contents for {len(inputs)} inputs.")
    if len({each.name for each in request.inputs}) < len(inputs):
        raise Unprocessable("An input is named twice.")
    flats = (
        [from_bytes(each, data) for each, data in zip(request.inputs, raw, strict=True)]
        if raw
        else [
            _of_contents(each, told.contents)
            for each, told in zip(request.inputs, message.inputs, strict=True)
        ]
    )
    return request, [
        Tensor(each.name, tuple(each.shape), flat, each.parameters)
        for each, flat in zip(request.inputs, flats, strict=True)
    ]


def to_response(head: Mapping[str, str], tensors: Sequence[Tensor]) -> Any:
    """A `ModelInferResponse` with the tensors as raw contents.

    Raises:
        ModelFailed: there is a gap, for which bytes have no word.
    """
    outputs = [
        {"name": each.name, "shape": each.shape, "datatype": DATATYPES.get(each.flat.type, "BYTES")}
        for each in tensors
    ]
    raw = [in_bytes(each.flat) for each in tensors]
    return protos.ModelInferResponse(**head, outputs=outputs, raw_output_contents=raw)


def _with_parameters(message: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, each in message.parameters.items():
        if (choice := each.WhichOneof("parameter_choice")) is None:
            raise Unprocessable(f"Parameter {name[:50]!r} has no value.")
        values[name] = getattr(each, choice)
    return {"parameters": values}


def _of_contents(tensor: InputTensor, contents: Any) -> pa.Array:
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
