"""MLflow's scoring protocol: what `mlflow models serve` takes and answers, at `/invocations`.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ tells of the protocol. Beside its JSON, CSV
and Parquet, Arrow streams are taken, and answers are given in any of these, as the `Accept` header asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope

from serving.errors import FieldError
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.request_body import JSON, read_typed
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.protocols import tabular
from serving.protocols.mlflow_scoring import ParsedRequest
from serving.protocols.mlflow_scoring_output import predictions_json
from serving.protocols.tabular import ARROW, CSV, PARQUET

_MEDIA_TYPES = (JSON, CSV, PARQUET, ARROW)
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
    faults: Sequence[FieldError] = (),
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


class InvocationsEndpoint(PredictEndpoint):
    """The ASGI application of `/invocations`."""

    respond = staticmethod(respond)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most, seconds = self._limits.max_body_bytes, self._limits.read_timeout_seconds
        media_type, body = await read_typed(scope, receive, most, seconds, _MEDIA_TYPES)
        scope["formats"] = media_type, _accepted(scope)
        return body

    async def _answer(
        self, live: LoadedModel, parts: list[Part], scope: Scope, body: bytes
    ) -> Sequence[bytes]:
        media_type, accepted = scope["formats"]
        asked = await self._asked(live, media_type, body)
        ends = time.perf_counter() + self.seconds(scope)
        left = max(0.0, ends - time.perf_counter())
        parts += live.calls.submit(asked.rows, asked.params, left, raw=True, origin=parts)
        found = await live.calls.output(asked.rows, asked.params, parts, ends)
        if accepted != JSON:
            scope["answered_in"] = ((b"content-type", accepted.encode()),)
            return [await asyncio.to_thread(tabular.write, accepted, found)]
        pieces = predictions_json(live.contract.output_columns, found)
        return [*pieces] if asked.unwrapped else [b'{"predictions":', *pieces, b"}"]

    async def _asked(self, live: LoadedModel, media_type: str, body: bytes) -> ParsedRequest:
        if media_type == JSON:
            return live.scoring.read(body)
        columns = {column.name: column for column in live.contract.columns}
        limit = self._limits.max_rows
        table = await asyncio.to_thread(tabular.read, media_type, body, columns, limit)
        return ParsedRequest(live.scoring.from_table(table), {})


def _accepted(scope: Scope) -> str:
    """The first of our formats that the caller asks for, or JSON."""
    for name, value in scope["headers"]:
        if name == b"accept":
            asked = [each.partition(";")[0].strip().lower() for each in value.decode("latin-1").split(",")]
            return next((each for each in asked if each in _MEDIA_TYPES), JSON)
    return JSON
