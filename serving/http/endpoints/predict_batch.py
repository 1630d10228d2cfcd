"""The endpoint of a batch of typed rows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from serving.batching.pending_request import Output
from serving.codecs.model_input import Rows, merged
from serving.codecs.predictions import batch_response
from serving.http.endpoints.predict import PredictEndpoint, query_params, whole
from serving.http.http_context import HttpContext
from serving.http.request_body import JSON, read_typed
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.models.replay import RecordedRequest
from serving.protocols import tabular
from serving.protocols.json_rows import RowChunk
from serving.protocols.tabular import ARROW

_MAX_ROWS_AHEAD = 8192
"""The rows of one request that may be read ahead of their predictions."""
_MAX_ROWS_RENDERED = 4096
"""The rows that are rendered in one turn of the event loop."""


class PredictBatchEndpoint(PredictEndpoint):
    """The endpoint `/predict/batch`: it reads, predicts and renders a large batch in chunks.

    A batch is one model call unless requests may share calls. A table in Arrow is validated as a whole.
    """

    protocol = "batch"

    async def _read(self, context: HttpContext) -> bytes:
        limits = self._limits
        context.media_type, body = await read_typed(
            context, limits.max_body_bytes, limits.read_timeout_seconds, (JSON, ARROW)
        )
        return body

    async def run(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        """Return the body of the response in pieces."""
        ends = time.perf_counter() + self._dataplane.seconds_left(context)
        if context.media_type == ARROW:
            rows, params = await _read_table(context, model, self._limits.max_rows)
            return await self._together(model, context.parts, rows, params, ends)
        if model.calls.sharing.allowed and not model.contract.layout.optional:
            with suppress(_NotSplit):
                return await self._in_chunks(context, model, ends)
        chunks = [chunk async for chunk in _read_chunks(model, context.body)]
        rows, params = merged([chunk.rows for chunk in chunks]), chunks[0].params
        return await self._together(model, context.parts, rows, params, ends)

    async def _in_chunks(self, context: HttpContext, model: LoadedModel, ends: float) -> Sequence[bytes]:
        """Predict the first rows while the other rows are read."""
        parts = context.parts
        waiting: deque[tuple[RowChunk, list[Part]]] = deque()
        pieces: list[bytes] = []
        rows_ahead = 0
        async for chunk in _read_chunks(model, context.body):
            left = max(0.0, ends - time.perf_counter())
            submitted = model.calls.submit(chunk.rows, chunk.params, left, admitted=bool(parts), origin=parts)
            parts += submitted
            waiting.append((chunk, submitted))
            rows_ahead += len(chunk.rows)
            while rows_ahead > _MAX_ROWS_AHEAD:
                rows_ahead -= len(waiting[0][0].rows)
                pieces.append(await _predictions(*waiting.popleft()))
        only = chunk if len(waiting) == 1 and not pieces else None
        for submission in waiting:
            pieces.append(await _predictions(*submission))
            await asyncio.sleep(0)
        if len(parts) > 1 and not model.calls.sharing.allowed:
            raise _NotSplit  # sharing was stopped in the meantime, so the predictions may be wrong
        if only:
            ticket = parts[0][1]
            model.recorder.add(
                RecordedRequest(only.rows, only.params, pieces[0], ticket.finished - ticket.started)
            )
        return batch_response(pieces, model.model_json)

    async def _together(
        self, model: LoadedModel, parts: list[Part], rows: Rows, params: Mapping[str, Any], ends: float
    ) -> Sequence[bytes]:
        """Predict all rows, in one model call if splitting them does not work."""
        model.calls.withdraw(parts)
        parts.clear()
        for alone in (False, True):
            left = max(0.0, ends - time.perf_counter())
            raw = model.contract.is_whole
            parts[:] = model.calls.submit(rows, params, left, raw=raw, admitted=alone, alone=alone or raw)
            if len(parts) > 1:
                with suppress(_NotSplit):
                    return batch_response(
                        [await _predictions(RowChunk(rows, params), parts)], model.model_json
                    )
                model.calls.stop_sharing_after(parts)
                continue
            ticket = parts[0][1]
            output = await ticket.future
            if model.contract.is_whole or not output.is_one_per_row(len(rows)):
                return [*whole(model, rows, params, ticket, output)]
            pieces = [piece async for piece in _rendered(output)]
            model.recorder.add(
                RecordedRequest(rows, params, b",".join(pieces), ticket.finished - ticket.started)
            )
            return batch_response(pieces, model.model_json)
        raise AssertionError("a model call for one request is one part")


class _NotSplit(Exception):  # does not leave this module
    """A part of a request did not return one result per row, so the request has to be one model call."""


async def _read_table(
    context: HttpContext, model: LoadedModel, max_rows: int
) -> tuple[Rows, Mapping[str, Any]]:
    """Return the rows of an Arrow stream, and the model parameters in the query.

    Raises:
        RequestError: they do not match the contract; as for rows in JSON, an unknown column is an error.
    """
    params = query_params(context, model)
    table = await asyncio.to_thread(tabular.read, ARROW, context.body, {}, max_rows)
    return model.scoring.from_named_table(table), params


async def _read_chunks(model: LoadedModel, body: bytes) -> AsyncIterator[RowChunk]:
    """Yield the chunks of a batch, and let other requests run between them."""
    for chunk in model.reader.read(body):
        yield chunk
        await asyncio.sleep(0)


async def _rendered(output: Output) -> AsyncIterator[bytes]:
    """Yield rendered predictions, and let other requests run between them."""
    for start in range(0, len(output), _MAX_ROWS_RENDERED):
        yield output.part(start, min(start + _MAX_ROWS_RENDERED, len(output))).materialize().items_json()
        await asyncio.sleep(0)


async def _predictions(chunk: RowChunk, parts: list[Part]) -> bytes:
    """Return the predictions of a chunk, in the order of its rows.

    Raises:
        _NotSplit: there is not one prediction per row.
    """
    outputs = [await ticket.future for _, ticket in parts]
    if not all(
        output.is_one_per_row(len(ticket.rows)) for output, (_, ticket) in zip(outputs, parts, strict=True)
    ):
        raise _NotSplit
    if len(outputs) == 1:
        return outputs[0].materialize().items_json()
    rows = [b""] * len(chunk.rows)
    for output, (indices, _) in zip(outputs, parts, strict=True):
        predictions = output.materialize()
        for place, index in enumerate(indices):
            rows[index] = predictions.row_json(place)
    return b",".join(rows)
