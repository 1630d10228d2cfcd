"""MLflow's scoring protocol, as `mlflow models serve` implements it, at `/invocations`.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ describes the protocol. In addition to its
JSON and CSV, this endpoint reads Parquet, Arrow streams, and SageMaker's JSON Lines and CSV without a header,
and writes any of these formats as the `Accept` header requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import orjson
from starlette.responses import Response

from serving.error_statuses import one_line
from serving.errors import FieldError
from serving.http.endpoints.predict import PredictEndpoint
from serving.http.http_context import HttpContext
from serving.http.request_body import JSON, read_typed
from serving.models.loaded_model import LoadedModel
from serving.protocols import json_lines, tabular
from serving.protocols.json_lines import JSON_LINES
from serving.protocols.mlflow_scoring import ParsedRequest
from serving.protocols.mlflow_scoring_output import predictions_json
from serving.protocols.tabular import ARROW, CSV, CSV_WITHOUT_HEADER, PARQUET
from serving.protocols.tf_serving import parse_instances

_OUTPUT_TYPES = (JSON, CSV, PARQUET, ARROW, JSON_LINES)
_INPUT_TYPES = (*_OUTPUT_TYPES, CSV_WITHOUT_HEADER)
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
"""MLflow's error codes by HTTP status."""


def respond(
    status: int,
    detail: str,
    request_id: str,
    *,
    faults: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error in MLflow's format; what does not match the contract is 400."""
    status = 400 if status == 422 else status
    body = {
        "error_code": _CODES.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"),
        "message": one_line(detail, faults),
        "request_id": request_id,
    }
    return Response(orjson.dumps(body), status, dict(headers or {}), JSON)


class InvocationsEndpoint(PredictEndpoint):
    """The endpoint `/invocations`."""

    protocol = "invocations"

    respond = staticmethod(respond)

    async def _read(self, context: HttpContext) -> bytes:
        limits = self._limits
        media_type, body = await read_typed(
            context, limits.max_body_bytes, limits.read_timeout_seconds, _INPUT_TYPES
        )
        context.media_type = media_type, _accepted(context)
        return body

    async def run(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        """Return the body of the response in pieces."""
        media_type, accepted = context.media_type
        request = await self._parse(context.body, media_type, model)
        output = await self._dataplane.predict_table(context, model, request.rows, request.params)
        if accepted != JSON:
            context.content_headers = ((b"content-type", accepted.encode()),)
        if accepted not in (JSON, JSON_LINES):
            return [await asyncio.to_thread(tabular.write, accepted, output)]
        pieces = predictions_json(model.contract.output_columns, output)
        if accepted == JSON_LINES:
            return [await asyncio.to_thread(json_lines.write, pieces)]
        return [*pieces] if request.unwrapped else [b'{"predictions":', *pieces, b"}"]

    async def _parse(self, body: bytes, media_type: str, model: LoadedModel) -> ParsedRequest:
        if media_type == JSON:
            return model.scoring.read(body)
        limit = self._limits.max_rows
        if media_type == JSON_LINES:
            values = await asyncio.to_thread(json_lines.read, body, limit)
            return ParsedRequest(parse_instances(model.contract, model.column_validator, values), {})
        columns = {column.name: column for column in model.contract.columns}
        table = await asyncio.to_thread(tabular.read, media_type, body, columns, limit)
        return ParsedRequest(model.scoring.from_table(table), {})


def _accepted(context: HttpContext) -> str:
    """Return the first supported format in the Accept header, or JSON."""
    for name, value in context.headers:
        if name == b"accept":
            ranges = [part.partition(";")[0].strip().lower() for part in value.decode("latin-1").split(",")]
            return next((media_type for media_type in ranges if media_type in _OUTPUT_TYPES), JSON)
    return JSON
