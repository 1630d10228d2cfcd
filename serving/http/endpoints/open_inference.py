"""The Open Inference Protocol, version 2, over HTTP: what KServe, MLServer and Triton speak.

https://github.com/kserve/open-inference-protocol has the protocol.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import compute
from starlette.responses import Response
from starlette.types import Receive, Scope

from serving.codecs import model_output
from serving.codecs.model_input import InputKind
from serving.codecs.output_columns import column_of, columns
from serving.contract.column_validator import Given
from serving.contract.contract import Contract
from serving.errors import FieldError, ModelFailed, Unprocessable, UnsupportedMedia
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.request_body import JSON, read_untyped
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.protocols.tensors import InferenceRequest, Tensor, encode, parse, tensor
from serving.types.column_type import ColumnType
from serving.types.nested import Nested, to_python
from serving.types.scalars import Scalar
from serving.types.tensors import Tensor as TensorKind

_LENGTH = b"inference-header-content-length"
_OCTETS = "application/octet-stream"
UNNAMED = "output-0"
"""The name of an output that has none in the signature."""


def respond(
    status: int,
    detail: str,
    request_id: str,
    *,
    faults: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as the protocol tells it: what does not fit is 400."""
    listed = "; ".join(f"{', '.join(map(str, fault.loc))}: {fault.msg}" for fault in faults)
    told = {"error": f"{detail} {listed}".strip()[:4000], "request_id": request_id}
    return Response(orjson.dumps(told), 400 if status == 422 else status, dict(headers or {}), JSON)


class InferEndpoint(PredictEndpoint):
    """The ASGI application of `…/infer`."""

    respond = staticmethod(respond)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        media_type, body = await read_untyped(
            scope, receive, self._limits.max_body_bytes, self._limits.read_timeout_seconds
        )
        length = next((value for name, value in scope["headers"] if name == _LENGTH), None)
        if media_type not in ("", JSON, _OCTETS) or (length is None and media_type == _OCTETS):
            raise UnsupportedMedia("Send JSON, or JSON and bytes with Inference-Header-Content-Length.")
        if length is not None and not (length.isdigit() and len(length) < 12):
            raise Unprocessable("Inference-Header-Content-Length is no number of bytes.")
        scope["formats"] = None if length is None else int(length)
        return body

    async def _answer(
        self, live: LoadedModel, parts: list[Part], scope: Scope, body: bytes
    ) -> Sequence[bytes]:
        request, inputs = parse(body, scope["formats"])
        ends = time.perf_counter() + self.seconds(scope)
        outputs, binary = await run_inference(live, parts, request, inputs, ends)
        head = {"model_name": live.version.name, "model_version": live.version.version}
        if request.id or live.cache is None:  # an answer that others get again has no id of its own
            head["id"] = request.id or scope["request_id"]
        pieces, length = encode(head, outputs, binary)
        if length is not None:
            scope["answered_in"] = (
                (b"content-type", _OCTETS.encode()),
                (_LENGTH, str(length).encode()),
            )
        return pieces


async def run_inference(
    live: LoadedModel, parts: list[Part], request: InferenceRequest, inputs: list[Tensor], ends: float
) -> tuple[list[Tensor], list[bool]]:
    """The outputs that a request asks for, and which of them as bytes, before `ends` on the counter.

    Raises:
        ServingError: it does not fit the contract, or was not answered.
    """
    rows = live.column_validator.validate(_columns(live.contract, inputs))
    params = {param.name for param in live.contract.params} & request.parameters.keys()
    given = live.contract.read_params({name: request.parameters[name] for name in params})
    left = max(0.0, ends - time.perf_counter())
    parts += live.calls.submit(rows, given, left, raw=True, origin=parts)
    return _select_outputs(
        request, _outputs(live.contract, await live.calls.output(rows, given, parts, ends))
    )


# -- inputs


def _columns(contract: Contract, tensors: list[Tensor]) -> dict[str, Given]:
    """The contract's columns: a tensor for each, or one of which each column is one."""
    columns = contract.columns
    known = {column.name: column.kind for column in columns}
    named = {each.name: each for each in tensors}
    if not named.keys() & known.keys() or (contract.form is InputKind.ARRAY and len(tensors) == 1):
        if len(tensors) == len(columns) == 1:
            named = {columns[0].name: tensors[0]}
        elif len(tensors) == 1 and tensors[0].shape[1:] == (len(columns),):
            flat, width = tensors[0].flat, len(columns)
            named = {
                column.name: Tensor(column.name, tensors[0].shape[:1], flat[index::width])
                for index, column in enumerate(columns)
            }
    if unknown := sorted(named.keys() - known.keys()):
        raise Unprocessable(f"The model has no input {unknown[0][:50]!r}: send {', '.join(known)}.")
    return {name: _to_column(known[name], each) for name, each in named.items()}


def _to_column(kind: ColumnType, given: Tensor) -> Given:
    is_column = len(given.shape) == 1 or given.shape[1:] == (1,)
    wants_bytes = isinstance(kind, Scalar) and pa.types.is_binary(kind.arrow)
    flat = given.flat
    if pa.types.is_binary(flat.type) and (
        not wants_bytes or given.parameters.get("content_type") == "base64"
    ):
        try:
            flat = flat.cast(pa.string())
        except pa.ArrowInvalid:
            raise Unprocessable(f"Input {given.name[:50]!r} is no UTF-8.") from None
    if isinstance(kind, Nested) and is_column and pa.types.is_string(flat.type):
        return [*map(_from_text, flat.to_pylist())]
    if isinstance(kind, Scalar) and is_column:
        return flat
    if isinstance(kind, TensorKind) and not kind.shape and is_column:
        return flat
    return Tensor(given.name, given.shape, flat).rows


def _from_text(text: str | None) -> Any:
    try:
        return None if text is None else orjson.loads(text)
    except ValueError:
        return text


# -- outputs


def _outputs(contract: Contract, table: pa.RecordBatch) -> list[Tensor]:
    if model_output.form(table) in (model_output.OutputForm.RECORDS, model_output.OutputForm.COLUMNS):
        optional = {value.name for value in contract.output_columns if not value.required}
        return [
            tensor(name, _nan_to_null(column) if name in optional else column)
            for name, column in zip(table.schema.names, table.columns, strict=True)
        ]
    declared = [value.name for value in contract.output_columns]
    if model_output.form(table) is model_output.OutputForm.WHOLE and (
        fields := _fields(table.column(0), declared)
    ):
        return fields
    if model_output.form(table) is model_output.OutputForm.VALUES and len(declared) > 1:
        with suppress(ModelFailed):  # it has other columns
            return [
                tensor(str(name), column)
                for name, column in zip(declared, columns(table, declared), strict=True)
            ]
    only = declared[0] if len(declared) == 1 else None
    return [tensor(only or UNNAMED, table.column(0))]


def _fields(whole: pa.Array, declared: list[str | None]) -> list[Tensor]:
    """The fields of an object that is a result itself, if they are the declared outputs."""
    (value,) = to_python(whole)
    if not isinstance(value, dict) or not value or {*value} != {*declared}:
        return []
    fields = ((name, each if isinstance(each, list) else [each]) for name, each in value.items())
    return [tensor(name, column_of(values)) for name, values in fields]


def _nan_to_null(column: pa.Array) -> pa.Array:
    """A column with nulls for what is NaN, as pandas has a gap in one of numbers."""
    if not pa.types.is_floating(column.type):
        return column
    return compute.if_else(compute.is_nan(column), None, column)


def _select_outputs(request: InferenceRequest, outputs: list[Tensor]) -> tuple[list[Tensor], list[bool]]:
    """The outputs that a request asks for, and which of them as bytes; all if it names none."""
    as_bytes = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return outputs, [as_bytes] * len(outputs)
    found = {each.name: each for each in outputs}
    for wanted in request.outputs:
        if wanted.name not in found:
            raise Unprocessable(f"The model has no output {wanted.name[:50]!r}: it has {', '.join(found)}.")
        if "classification" in wanted.parameters:
            raise Unprocessable("Classification of outputs is not spoken here.")
    binary = [bool(wanted.parameters.get("binary_data", as_bytes)) for wanted in request.outputs]
    return [found[wanted.name] for wanted in request.outputs], binary
