"""Send the requests of the zoo to a service, through each protocol that can express them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import prod
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import numpy as np
import pandas as pd
import pyarrow as pa

from serving.grpc import inference_pb2 as protos
from tests.support.model_zoo.entries import Request, scoring_bodies

FORMATS = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
SCORING = ("records", "split", "inputs", "instances", "unwrapped")
V1 = {"v1-instances": "instances", "v1-inputs": "inputs"}
"""The form of MLflow's scoring protocol with the same body, for each format of KServe v1 and TensorFlow."""
TENSORS = ("v2", "v2-binary", "grpc")
TYPED = ("predict", "batch", "stream")
PROTOCOLS = (*SCORING, *V1, *FORMATS, *TENSORS, *TYPED)

DTYPES = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_BY_KIND = {"b": "BOOL", "i4": "INT32", "i8": "INT64", "f4": "FP32", "f8": "FP64"}


@dataclass(frozen=True, slots=True)
class Reply:
    """Response of a protocol: its status, 200 on success, and the content as Python objects."""

    status: int
    content: Any


Send = Callable[[], Reply]


class Protocols:
    """Clients of one service for all protocols.

    Args:
        http: a client of the service.
        stub: a stub of its gRPC service.
    """

    def __init__(self, http: httpx.Client, stub: Any) -> None:
        self._http, self._stub = http, stub

    def sends(self, model: str, request: Request, protocol: str) -> Iterator[Send]:
        """Return the calls that express a request in a protocol: none, one, or one for each row."""
        path = f"/models/{quote(model)}/predict"
        if protocol in SCORING:
            if body := scoring_bodies(request).get(protocol):
                yield lambda: self._scored(model, json.dumps(body).encode(), "application/json")
        elif protocol in V1:
            if body := scoring_bodies(request).get(V1[protocol]):
                field = "outputs" if protocol == "v1-inputs" else "predictions"
                yield lambda: self._predicted(model, body, field)
        elif protocol in FORMATS:
            if request.frame is not None and request.params is None and _is_flat(request.frame):
                content = _WRITERS[protocol](request.frame)
                yield lambda: self._scored(model, content, FORMATS[protocol])
        elif protocol in TENSORS:
            if inputs := tensors(request):
                fits_bytes = not any(None in each.data and each.datatype == "BYTES" for each in inputs)
                if protocol == "grpc" and fits_bytes and _is_scalar(request.params):
                    yield lambda: self._rpc(model, inputs, request.params or {})
                elif protocol == "v2" or (protocol == "v2-binary" and fits_bytes):
                    yield lambda: self._inferred(model, inputs, request.params or {}, protocol == "v2-binary")
        elif protocol == "batch" and request.body is None:
            batch: dict[str, Any] = {"rows": [_typed(request, row) for row in request.rows]}
            if request.params is not None:
                batch["params"] = dict(request.params)
            yield lambda: self._posted(f"{path}/batch", batch)
        elif protocol in ("predict", "stream"):
            bodies = (
                [request.body] if request.body is not None else [_typed(request, row) for row in request.rows]
            )
            query = [*_query(request.params or {})]
            for each in bodies:
                if protocol == "predict":
                    yield partial(self._posted, path, each, query)
                else:
                    yield partial(self._streamed, f"{path}/stream", each, query)

    def _scored(self, model: str, content: bytes, media_type: str) -> Reply:
        headers = {"Content-Type": media_type, "X-Model": model}
        return _reply(self._http.post("/invocations", content=content, headers=headers))

    def _predicted(self, model: str, body: Any, field: str) -> Reply:
        answer = self._http.post(f"/v1/models/{quote(model)}:predict", json=body)
        return _reply(answer, lambda answer: answer.json()[field])

    def _posted(self, path: str, body: Any, query: Any = ()) -> Reply:
        return _reply(self._http.post(path, json=body, params=query))

    def _streamed(self, path: str, body: Any, query: Any) -> Reply:
        answer = self._http.post(path, json=body, params=query)
        if answer.status_code != 200:
            return _reply(answer)
        events = [
            dict(line.split(": ", 1) for line in each.splitlines())
            for each in answer.text.split("\n\n")
            if each
        ]
        if events[-1].get("event") == "error":
            return Reply(json.loads(events[-1]["data"])["status"], events[-1]["data"])
        return Reply(200, [json.loads(each["data"]) for each in events if "event" not in each])

    def _inferred(
        self, model: str, inputs: Sequence[Tensor], params: Mapping[str, Any], is_binary: bool
    ) -> Reply:
        head: dict[str, Any] = {"parameters": dict(params), "inputs": [each.head for each in inputs]}
        path, headers = f"/v2/models/{quote(model)}/infer", {"Content-Type": "application/json"}
        if not is_binary:
            for described, each in zip(head["inputs"], inputs, strict=True):
                described["data"] = each.data
            return _reply(self._http.post(path, content=json.dumps(head), headers=headers), _from_json)
        for described, each in zip(head["inputs"], inputs, strict=True):
            described["parameters"] = {"binary_data_size": len(each.raw)}
        head["parameters"]["binary_data_output"] = True
        text = json.dumps(head).encode()
        headers = {
            "Inference-Header-Content-Length": str(len(text)),
            "Content-Type": "application/octet-stream",
        }
        content = text + b"".join(each.raw for each in inputs)
        return _reply(self._http.post(path, content=content, headers=headers), _from_binary)

    def _rpc(self, model: str, inputs: Sequence[Tensor], params: Mapping[str, Any]) -> Reply:
        request = protos.ModelInferRequest(
            model_name=model,
            inputs=[each.head for each in inputs],
            parameters={
                name: protos.InferParameter(**{_FIELDS[type(value)]: value}) for name, value in params.items()
            },
            raw_input_contents=[each.raw for each in inputs],
        )
        try:
            answer = self._stub.ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            return Reply(_STATUSES.get(error.code(), 500), error.details())
        pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return Reply(200, {each.name: _from_raw(each.datatype, [*each.shape], raw) for each, raw in pairs})


_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
_STATUSES = {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.NOT_FOUND: 404}


def _reply(answer: httpx.Response, read: Callable[[httpx.Response], Any] | None = None) -> Reply:
    if answer.status_code != 200:
        return Reply(answer.status_code, answer.text)
    return Reply(200, read(answer) if read else answer.json())


def _typed(request: Request, row: Any) -> Any:
    return row if request.named else {"input": row}


def _query(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in params.items():
        for each in value if isinstance(value, list) else [value]:
            yield name, each if isinstance(each, str) else json.dumps(each)


def _is_scalar(params: Mapping[str, Any] | None) -> bool:
    return all(type(value) in _FIELDS for value in (params or {}).values())


# -- tables


def _is_flat(frame: pd.DataFrame) -> bool:
    return not any(isinstance(value, list | dict) for name in frame for value in frame[name])


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns=str)


def _as_arrow(frame: pd.DataFrame) -> bytes:
    written, sink = pa.Table.from_pandas(_named(frame), preserve_index=False), BytesIO()
    with pa.ipc.new_stream(sink, written.schema) as writer:
        writer.write_table(written)
    return sink.getvalue()


_WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "csv": lambda frame: frame.to_csv(index=False).encode(),
    "parquet": lambda frame: bytes(_named(frame).to_parquet(index=False)),
    "arrow": _as_arrow,
}


# -- tensors


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input of the Open Inference Protocol."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]

    @property
    def head(self) -> dict[str, Any]:
        """Return its description."""
        return {"name": self.name, "datatype": self.datatype, "shape": [*self.shape]}

    @property
    def raw(self) -> bytes:
        """Return its values as bytes."""
        if self.datatype != "BYTES":
            return np.array(
                [np.nan if each is None else each for each in self.data], DTYPES[self.datatype]
            ).tobytes()
        texts = [text.encode() for text in self.data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def tensors(request: Request) -> list[Tensor]:
    """Return the tensors that express a request, one for each column; none if tensors cannot express it."""
    rows = [*request.rows]
    if request.body is not None or (request.named and not request.is_uniform):
        return []
    columns = {name: [row[name] for row in rows] for name in rows[0]} if request.named else {"input": rows}
    tensors_ = [_tensor(request, name, column) for name, column in columns.items()]
    return [] if None in tensors_ else [each for each in tensors_ if each]


def _tensor(request: Request, name: str, column: list[Any]) -> Tensor | None:
    if request.datatype == "JSON":
        return Tensor(name, "BYTES", (len(column),), [*map(json.dumps, column)])
    if request.datatype:
        array = np.array(column)
        return Tensor(name, request.datatype, array.shape, array.ravel().tolist())
    types = {type(value) for value in column} - {type(None)}
    if types & {list, dict}:
        return Tensor(name, "BYTES", (len(column),), [*map(json.dumps, column)])
    if len(types) != 1:
        return None
    datatype = "BYTES"
    if types != {str}:
        dtype: Any = (
            request.frame[name].dtype
            if request.frame is not None and name in request.frame
            else np.array(column).dtype
        )
        datatype = _BY_KIND.get(dtype.kind) or _BY_KIND.get(dtype.str[1:], "FP64")
    return Tensor(name, datatype, (len(column),), column)


def _from_json(answer: httpx.Response) -> dict[str, Any]:
    return {output["name"]: _shaped(output["data"], output["shape"]) for output in answer.json()["outputs"]}


def _from_binary(answer: httpx.Response) -> dict[str, Any]:
    length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    outputs, start = {}, length
    for output in json.loads(answer.content[:length])["outputs"]:
        if (size := output.get("parameters", {}).get("binary_data_size")) is None:
            outputs[output["name"]] = _shaped(output["data"], output["shape"])
            continue
        outputs[output["name"]] = _from_raw(
            output["datatype"], output["shape"], answer.content[start : start + size]
        )
        start += size
    assert start == len(answer.content)
    return outputs


def _from_raw(datatype: str, shape: list[int], raw: bytes) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape).tolist()
    texts, start = [], 0
    while start < len(raw):
        (size,) = struct.unpack_from("<I", raw, start)
        texts.append(raw[start + 4 : start + 4 + size].decode())
        start += 4 + size
    return _shaped(texts, shape)


def _shaped(flat: list[Any], shape: list[int]) -> Any:
    assert len(flat) == prod(shape)
    for size in reversed(shape[1:]):
        flat = (
            [flat[start : start + size] for start in range(0, len(flat), size)]
            if size
            else [[] for _ in range(shape[0])]
        )
    return flat
