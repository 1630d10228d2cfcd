"""MLflow's scoring protocol: what `mlflow models serve` takes and answers, at `/invocations`.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ tells of the protocol. Beside its JSON, CSV
and Parquet, Arrow streams are taken, and answers are given in any of these, as the `Accept` header asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import orjson
import pyarrow as pa
from starlette.responses import Response
from starlette.types import Receive, Scope

from serving.errors import Fault, ModelFailed
from serving.http import formats
from serving.http.body import JSON, read_any
from serving.http.formats import ARROW, CSV, PARQUET
from serving.http.predict import Predict
from serving.runtime import answers
from serving.runtime.answers import Form
from serving.runtime.loaded import Loaded, Part
from serving.runtime.predictions import woven
from serving.runtime.scoring import Asked
from serving.runtime.tensors import arrays
from serving.runtime.values import Texts, Value

_MEDIA_TYPES = (JSON, CSV, PARQUET, ARROW)
_ROWS_AT_ONCE = 4096
_CODES: Mapping[int, str] = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    408: "BAD_REQUEST",
    413: "BAD_REQUEST",
    415: "BAD_REQUEST",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "TEMPORARILY_UNAVAILABLE",
}
"""MLflow's names for what went wrong, by status."""


def respond(
    status: int,
    detail: str,
    request_id: str,
    *,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as MLflow tells it: what does not fit the contract is 400."""
    status = 400 if status == 422 else status
    listed = "; ".join(f"{', '.join(map(str, fault.loc))}: {fault.msg}" for fault in faults)
    told = {
        "error_code": _CODES.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"),
        "message": f"{detail} {listed}".strip()[:4000],
        "request_id": request_id,
    }
    return Response(orjson.dumps(told), status, dict(headers or {}), JSON)


class Invocations(Predict):
    """The ASGI application of `/invocations`."""

    respond = staticmethod(respond)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most, seconds = self._limits.max_body_bytes, self._limits.receive_seconds
        media_type, body = await read_any(scope, receive, most, seconds, _MEDIA_TYPES)
        scope["formats"] = media_type, _accepted(scope)
        return body

    async def _answer(self, live: Loaded, parts: list[Part], scope: Scope, body: bytes) -> Sequence[bytes]:
        media_type, accepted = scope["formats"]
        asked = await self._asked(live, media_type, body)
        ends = time.perf_counter() + self.seconds(scope)
        parts += live.submit_table(asked.rows, asked.params, ends)
        found = await live.answered(asked.rows, asked.params, parts)
        if accepted != JSON:
            scope["answered_in"] = ((b"content-type", accepted.encode()),)
            return [await asyncio.to_thread(formats.write, accepted, found)]
        return [*_in_json(live, found)]

    async def _asked(self, live: Loaded, media_type: str, body: bytes) -> Asked:
        if media_type == JSON:
            return live.scoring.read(body)
        columns = {column.name: column for column in live.contract.columns}
        limit = self._limits.max_rows
        table = await asyncio.to_thread(formats.read, media_type, body, columns, limit)
        return Asked(live.scoring.arrange(table), {})


def _accepted(scope: Scope) -> str:
    """The first of our formats that the caller asks for, or JSON."""
    for name, value in scope["headers"]:
        if name == b"accept":
            asked = [each.partition(";")[0].strip().lower() for each in value.decode("latin-1").split(",")]
            return next((each for each in asked if each in _MEDIA_TYPES), JSON)
    return JSON


# -- in JSON


def _in_json(live: Loaded, table: pa.RecordBatch) -> Iterator[bytes]:
    """The answer as MLflow's server writes it, in pieces."""
    yield b'{"predictions":'
    match answers.form(table):
        case Form.RECORDS:
            fields = [_value(live, name) for name in table.schema.names]
            yield from _listed(table, partial(_records, fields))
        case Form.VALUES:
            names = [each.name for each in live.contract.answered]
            only = names[0] if len(names) == 1 else None  # an array is that column, whatever its name
            yield from _listed(table, partial(_only, _value(live, only)))
        case Form.COLUMNS:
            for index, name in enumerate(table.schema.names):
                yield (b"," if index else b"{") + orjson.dumps(name) + b":"
                yield from _listed(table.select([name]), partial(_only, _value(live, name)))
            yield b"}"
        case Form.WHOLE:
            yield _only(_value(live, None), table)
    yield b"}"


def _value(live: Loaded, name: str | None) -> Value:
    """How the values of an output column are told: whatever they are, and a gap as null."""
    optional = (each for each in live.contract.answered if each.name == name and not each.required)
    return next(optional, Value(name, "any", (), required=False))


def _listed(table: pa.RecordBatch, told: Callable[[pa.RecordBatch], bytes]) -> Iterator[bytes]:
    """A list of what is told of the rows, so many at once that others have their turn."""
    for start in range(0, max(1, len(table)), _ROWS_AT_ONCE):
        rows = told(table.slice(start, _ROWS_AT_ONCE))
        yield (b"," if start else b"[") + rows
    yield b"]"


def _records(fields: list[Value], rows: pa.RecordBatch) -> bytes:
    parts: list[bytes | Texts] = []
    for index, (value, column) in enumerate(zip(fields, rows.columns, strict=True)):
        parts += [(b"," if index else b"{") + orjson.dumps(str(value.name)) + b":", _texts(value, column)]
    return woven(*parts, b"},").json()[:-1]


def _only(value: Value, rows: pa.RecordBatch) -> bytes:
    """The values of the only column, a comma between them."""
    innermost = column = rows.column(0)
    while pa.types.is_fixed_size_list(innermost.type):
        innermost = innermost.flatten()
    if pa.types.is_floating(innermost.type) or pa.types.is_integer(innermost.type):
        found = arrays(column)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            return b",".join(_texts(value, column).texts)  # gaps, where the output is optional
        if found.dtype.kind == "f":
            found = found.astype(np.float64, copy=False)
        return orjson.dumps(np.ascontiguousarray(found), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    return b",".join(_texts(value, column).texts)


def _texts(value: Value, column: pa.Array) -> Texts:
    found = value.texts(column)
    if found.bad:
        raise ModelFailed("its answer has a number that is not finite")
    return found
