"""What `/predict/batch` does with rows: read in pieces, queue, answer in pieces, or all as one call."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.types import Scope

from serving.batching.pending import Output
from serving.codecs.model_input import Rows, merged
from serving.codecs.predictions import batch_response
from serving.http.endpoints.predict import PredictEndpoint, whole
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.models.replay import RecordedRequest
from serving.protocols.json_rows import RowChunk

# Rows of one request that may be read ahead of its answers.
_MAX_AHEAD = 8192
_ROWS_AT_ONCE = 4096


class PredictBatchEndpoint(PredictEndpoint):
    """The ASGI application of `/predict/batch`: rows, read and answered in pieces if they are many."""

    async def _answer(
        self, live: LoadedModel, parts: list[Part], scope: Scope, body: bytes
    ) -> Sequence[bytes]:
        ends = time.perf_counter() + self.seconds(scope)
        if live.calls.sharing.allowed and not live.contract.layout.optional:
            with suppress(_NotSplit):
                return await self._in_pieces(live, parts, body, ends)
        pieces = [piece async for piece in _pieces(live, body)]
        rows, params = merged([piece.rows for piece in pieces]), pieces[0].params
        return await self._as_one(live, parts, rows, params, ends)

    async def _in_pieces(
        self, live: LoadedModel, parts: list[Part], body: bytes, ends: float
    ) -> Sequence[bytes]:
        """Answer the rows while the rest of them is read."""
        waiting: deque[tuple[RowChunk, list[Part]]] = deque()
        answer: list[bytes] = []
        ahead = 0
        async for piece in _pieces(live, body):
            left = max(0.0, ends - time.perf_counter())
            submitted = live.calls.submit(piece.rows, piece.params, left, admitted=bool(parts), origin=parts)
            parts += submitted
            waiting.append((piece, submitted))
            ahead += len(piece.rows)
            while ahead > _MAX_AHEAD:
                ahead -= len(waiting[0][0].rows)
                answer.append(await _joined(*waiting.popleft()))
        single = piece if len(waiting) == 1 and not answer else None
        for each in waiting:
            answer.append(await _joined(*each))
            await asyncio.sleep(0)
        if len(parts) > 1 and not live.calls.sharing.allowed:
            raise _NotSplit  # that ended meanwhile, so that what the parts got may be wrong
        if single:
            ticket = parts[0][1]
            live.recorder.add(
                RecordedRequest(single.rows, single.params, answer[0], ticket.finished - ticket.started)
            )
        return batch_response(answer, live.model_json)

    async def _as_one(
        self, live: LoadedModel, parts: list[Part], rows: Rows, params: Mapping[str, Any], ends: float
    ) -> Sequence[bytes]:
        """Answer the rows together, as one call if need be."""
        live.calls.withdraw(parts)
        parts.clear()
        for alone in (False, True):
            left = max(0.0, ends - time.perf_counter())
            raw = live.contract.is_whole
            parts[:] = live.calls.submit(rows, params, left, raw=raw, admitted=alone, alone=alone or raw)
            if len(parts) > 1:
                with suppress(_NotSplit):
                    chunks = [await _joined(RowChunk(rows, params), parts)]
                    return batch_response(chunks, live.model_json)
                live.calls.stop_sharing("a part of a large request did not return one result per row")
                continue
            ticket = parts[0][1]
            answer = await ticket.future
            if live.contract.is_whole or not answer.is_one_per_row(len(rows)):
                return [*whole(live, rows, params, ticket, answer)]
            pieces = [piece async for piece in _rendered(answer)]
            live.recorder.add(
                RecordedRequest(rows, params, b",".join(pieces), ticket.finished - ticket.started)
            )
            return batch_response(pieces, live.model_json)
        raise AssertionError("a call of its own is one part")


class _NotSplit(Exception):  # never leaves this module
    """A part of a request did not return one result per row: it has to be one call."""


async def _pieces(live: LoadedModel, body: bytes) -> AsyncIterator[RowChunk]:
    """Read a batch in pieces; between them others have their turn."""
    for piece in live.reader.read(body):
        yield piece
        await asyncio.sleep(0)


async def _rendered(answer: Output) -> AsyncIterator[bytes]:
    """Render predictions, so many at once that others have their turn."""
    for start in range(0, len(answer), _ROWS_AT_ONCE):
        yield answer.part(start, min(start + _ROWS_AT_ONCE, len(answer))).materialize().items_json()
        await asyncio.sleep(0)


async def _joined(piece: RowChunk, parts: list[Part]) -> bytes:
    """The predictions of a piece, in the order of its rows.

    Raises:
        _NotSplit: there is none for each row.
    """
    answers = [await ticket.future for _, ticket in parts]
    if not all(
        answer.is_one_per_row(len(ticket.rows)) for answer, (_, ticket) in zip(answers, parts, strict=True)
    ):
        raise _NotSplit
    if len(answers) == 1:
        return answers[0].materialize().items_json()
    rows = [b""] * len(piece.rows)
    for answer, (indices, _) in zip(answers, parts, strict=True):
        predictions = answer.materialize()
        for place, index in enumerate(indices):
            rows[index] = predictions.row_json(place)
    return b",".join(rows)
