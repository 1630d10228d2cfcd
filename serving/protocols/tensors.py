"""The tensors of the Open Inference Protocol, in JSON or as raw bytes after it (binary tensor extension).

https://github.com/kserve/open-inference-protocol defines the protocol. Triton's documentation defines the
extension, in `docs/protocol/extension_binary_data.md`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.codecs.json_fields import refuse_repeats
from serving.codecs.output_json import to_jsonable
from serving.errors import Malformed, ModelFailed, Unprocessable
from serving.types.nested import JSON
from serving.types.tensors import fixed_size_list

TYPES: Mapping[str, pa.DataType] = {
    "BOOL": pa.bool_(),
    "UINT8": pa.uint8(),
    "UINT16": pa.uint16(),
    "UINT32": pa.uint32(),
    "UINT64": pa.uint64(),
    "INT8": pa.int8(),
    "INT16": pa.int16(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "FP16": pa.float16(),
    "FP32": pa.float32(),
    "FP64": pa.float64(),
    "BYTES": pa.string(),
}
"""The Arrow type of each datatype of the protocol."""
DATATYPES = {type: datatype for datatype, type in TYPES.items()}
_LENGTH = struct.Struct("<I")
Parameters = dict[str, Any]
Size = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class InputTensor(_Part):
    """One input of a request; its data are in the JSON, or follow it as raw bytes."""

    name: str
    shape: list[Size] = Field(min_length=1, max_length=16)
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class WantedOutput(_Part):
    """An output that a request selects."""

    name: str
    parameters: Parameters = {}


class InferenceRequest(_Part):
    """The JSON of a request."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[WantedOutput] = []


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its elements in row-major order, and its shape."""

    name: str
    shape: tuple[int, ...]
    flat: pa.Array
    parameters: Parameters = field(default_factory=dict)

    @property
    def rows(self) -> pa.Array:
        """Return the rows: single elements, or nested lists of fixed sizes."""
        return fixed_size_list(self.flat, self.shape)


# -- requests


def parse(body: bytes, json_bytes: int | None) -> tuple[InferenceRequest, list[Tensor]]:
    """Return a request and its inputs; with the extension, the JSON is the first `json_bytes` of the body.

    Raises:
        Malformed: the body is not JSON, or its raw bytes do not match the sizes in the JSON.
        Unprocessable: the request violates the protocol, or the elements of a tensor do not match its shape
            and datatype.
    """
    end = len(body) if json_bytes is None else json_bytes
    if end > len(body):
        raise Malformed("The body is shorter than its header says.")
    try:
        document = orjson.loads(body[:end])
        request = InferenceRequest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Unprocessable(f"{where or 'the request'}: {first['msg']}") from None
    except ValueError as error:
        raise Malformed(f"The body is not JSON: {error}") from None
    refuse_repeats(body[:end], _fields(document))
    tensors: list[Tensor] = []
    for sent in request.inputs:
        size = sent.parameters.get("binary_data_size")
        if size is None:
            flat = _from_json(sent)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(body) - end:
                raise Malformed(f"The binary data of input {sent.name[:50]!r} are not there.")
            flat = from_bytes(sent, body[end : end + size])
            end += size
        tensors.append(Tensor(sent.name, tuple(sent.shape), flat, sent.parameters))
    if end < len(body):
        raise Malformed(f"The body has {len(body) - end} bytes more than its inputs say.")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise Unprocessable("An input is named twice.")
    return request, tensors


def _fields(document: Mapping[str, Any]) -> int:
    """Return the number of fields of a request whose data contain no objects."""
    parts = [document, *document["inputs"], *document.get("outputs", ())]
    return sum(len(part) + len(part.get("parameters", ())) for part in parts)


def _from_json(tensor: InputTensor) -> pa.Array:
    arrow = kind(tensor)
    if tensor.data is None:
        raise invalid_tensor(tensor, "has no data")
    values = [*_flattened(tensor.data, len(tensor.shape))]
    if len(values) != prod(tensor.shape):
        raise invalid_tensor(tensor, f"has {len(values)} values, which is not the shape {tensor.shape}")
    try:
        # Arrow would convert booleans to numbers, and 1.5 to 1.
        types = {*map(type, values)}
        if (bool in types and tensor.datatype != "BOOL") or (float in types and pa.types.is_integer(arrow)):
            raise pa.ArrowInvalid("they have another type")
        return pa.array(values, arrow)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        raise invalid_tensor(tensor, f"has values that are no {tensor.datatype}") from None


def _flattened(data: list[Any], depth: int) -> Iterator[Any]:
    for element in data:
        if isinstance(element, list) and depth > 1:
            yield from _flattened(element, depth - 1)
        else:
            yield element


def from_bytes(tensor: InputTensor, data: bytes) -> pa.Array:
    """Return the elements of a tensor from raw bytes: little endian numbers, or texts after their lengths.

    Raises:
        Unprocessable: the elements do not match the shape and the datatype.
    """
    arrow = kind(tensor)
    if tensor.datatype == "BYTES":
        values = [*_split_bytes_elements(tensor, data)]
        if len(values) != prod(tensor.shape):
            raise invalid_tensor(tensor, f"has {len(values)} elements, which is not the shape {tensor.shape}")
        return pa.array(values, pa.binary())
    dtype = np.dtype(arrow.to_pandas_dtype()).newbyteorder("<")
    if len(data) != prod(tensor.shape) * dtype.itemsize:
        raise invalid_tensor(tensor, f"has {len(data)} bytes, which is not the shape {tensor.shape}")
    if dtype.kind == "b":
        return pa.array(np.frombuffer(data, np.uint8) != 0)
    return pa.array(np.frombuffer(data, dtype))


def _split_bytes_elements(tensor: InputTensor, data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = start + _LENGTH.size
        size = _LENGTH.unpack_from(data, start)[0] if end <= len(data) else len(data)
        if end + size > len(data):
            raise invalid_tensor(tensor, "has an element that is longer than its data")
        yield data[end : end + size]
        start = end + size


def kind(tensor: InputTensor) -> pa.DataType:
    """Return the Arrow type of a tensor's elements.

    Raises:
        Unprocessable: the datatype is unknown, or the tensor has no elements.
    """
    if tensor.datatype not in TYPES:
        raise invalid_tensor(tensor, f"is of datatype {tensor.datatype[:20]!r}: send {', '.join(TYPES)}")
    if not prod(tensor.shape):
        raise invalid_tensor(tensor, "is empty")
    return TYPES[tensor.datatype]


def invalid_tensor(tensor: InputTensor, detail: str) -> Unprocessable:
    """Return the error for an input."""
    return Unprocessable(f"Input {tensor.name[:50]!r} {detail}.")


# -- responses


def tensor(name: str, column: pa.Array) -> Tensor:
    """Return a column of a model's output as a tensor; values other than numbers and booleans become text."""
    shape, flat = [len(column)], column
    while pa.types.is_fixed_size_list(flat.type) or _is_rectangular(flat):
        flat = flat.flatten()
        shape.append(len(flat) // max(1, prod(shape)))
    if pa.types.is_large_string(flat.type):
        flat = flat.cast(pa.string())
    if flat.type in DATATYPES or pa.types.is_binary(flat.type):
        return Tensor(name, tuple(shape), flat)
    if flat.type == JSON:
        return Tensor(name, tuple(shape), flat.storage)
    texts = [value if value is None else _text(value) for value in flat.to_pylist()]
    return Tensor(name, tuple(shape), pa.array(texts, pa.string()))


def _is_rectangular(array: pa.Array) -> bool:
    """Check whether all elements are lists of one length."""
    if not pa.types.is_list(array.type) or array.null_count or not len(array):
        return False
    lengths = array.value_lengths()
    return bool(lengths[0].as_py()) and len(lengths.unique()) == 1


def _text(value: Any) -> str:
    plain = to_jsonable(value)
    return plain if isinstance(plain, str) else orjson.dumps(plain).decode()


def encode(
    head: Mapping[str, Any], tensors: Sequence[Tensor], binary: Sequence[bool]
) -> tuple[list[bytes], int | None]:
    """Return a response in pieces, and the number of bytes of its JSON if raw bytes follow.

    Raises:
        ModelFailed: a number is not finite, which JSON cannot represent.
    """
    outputs, raw = [], []
    for tensor_, wants_bytes in zip(tensors, binary, strict=True):
        flat = tensor_.flat
        datatype = DATATYPES.get(flat.type, "BYTES")
        output: dict[str, Any] = {"name": tensor_.name, "shape": tensor_.shape, "datatype": datatype}
        if wants_bytes and not flat.null_count:  # raw bytes cannot represent null
            raw.append(in_bytes(flat))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = orjson.Fragment(_json(flat))
            if pa.types.is_binary(flat.type):
                output["parameters"] = {"content_type": "base64"}
        outputs.append(output)
    text = orjson.dumps({**head, "outputs": outputs})
    return [text, *raw], len(text) if raw else None


def _json(flat: pa.Array) -> bytes:
    if pa.types.is_binary(flat.type):
        return orjson.dumps([base64.b64encode(value or b"").decode() for value in flat.to_pylist()])
    if flat.null_count or not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        return orjson.dumps(flat.to_pylist())
    numbers = flat.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        if not np.isfinite(numbers).all():
            raise ModelFailed("its output has a number that is not finite")
        numbers = numbers.astype(np.float64, copy=False)
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def in_bytes(flat: pa.Array) -> bytes:
    """Return the elements as raw bytes.

    Raises:
        ModelFailed: an element is null, which raw bytes cannot represent.
    """
    if flat.null_count and not pa.types.is_floating(flat.type):
        raise ModelFailed("its output has a null, which raw bytes can't express: send the request as JSON")
    if pa.types.is_string(flat.type) or pa.types.is_binary(flat.type):
        values = [value.encode() if isinstance(value, str) else value for value in flat.to_pylist()]
        return b"".join(_LENGTH.pack(len(value)) + value for value in values)
    return bytes(flat.to_numpy(zero_copy_only=False).tobytes())
