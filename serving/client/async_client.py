"""The asynchronous client, for asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from serving.client import results
from serving.client.configuration import DEADLINE_SECONDS, MAX_CONNECTIONS, configuration
from serving.client.events import ChunkParser
from serving.client.exchange import connection_failed, deadline_exceeded, ended_early, exchange
from serving.client.requests import Call, Options, Requests
from serving.client.results import (
    BatchResult,
    Feedback,
    ModelInfo,
    PredictionResult,
    Readiness,
    ScoringResult,
)

T = TypeVar("T")


class AsyncPredictionStream:
    """A streamed prediction: iterate over its chunks once, with `async for`.

    Attributes:
        model: The exact version that predicts.
        request_id: Identifies the request in the log of the service.
    """

    def __init__(self, response: httpx.Response, deadline: float) -> None:
        self.model = results.version_of(response)
        self.request_id = response.headers.get("x-request-id", "")
        self._response, self._deadline = response, deadline

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the chunks as they arrive.

        Raises:
            ClientError: The model failed after its first chunk, the next chunk is late, or the stream ended
                before its end was announced.
        """
        parser = ChunkParser(self.request_id)
        try:
            async for data in self._response.aiter_bytes():
                for chunk in parser.feed(data):
                    yield chunk
        except httpx.TimeoutException as error:
            raise deadline_exceeded(self._deadline, self.request_id) from error
        except httpx.RequestError as error:
            raise connection_failed(error) from error
        if not parser.is_complete:
            raise ended_early(self._response)


class AsyncClient:
    """A client of one service with a pool of connections; tasks of one event loop may share it.

    All methods raise `ClientError` (see `serving.client.errors`), and `ValueError` or `TypeError` for values
    that cannot be sent exactly.

    Args:
        url: The address of the service, with its path prefix if it has one.
        api_key: The API key; the environment variable `MLFLOW_SERVING_API_KEY` if absent.
        model: The model that predicts unless a call names another; the service's default model if absent.
        deadline: The seconds that a call may take unless it names another limit.
        verify: False, or an SSL context for certificates of a private authority.
        transport: A transport of httpx, for example for a Unix socket.
        max_connections: The number of connections in the pool.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        deadline: float = DEADLINE_SECONDS,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._requests = Requests(model, deadline)
        settings = configuration(url, api_key, verify, max_connections)
        self._http = httpx.AsyncClient(transport=transport, **settings)

    async def predict(self, row: Mapping[str, Any], **options: Unpack[Options]) -> PredictionResult:
        """Return the prediction for one row: the columns of the contract by name."""
        return await self._run(self._requests.predict(row, **options))

    async def predict_batch(
        self, rows: Iterable[Mapping[str, Any]] | Any, **options: Unpack[Options]
    ) -> BatchResult:
        """Return the predictions for rows, a DataFrame or an Arrow table, in one request.

        Rows are sent as JSON, DataFrames and tables as Arrow.
        """
        return await self._run(self._requests.batch(rows, **options))

    @asynccontextmanager
    async def predict_stream(
        self, row: Mapping[str, Any], **options: Unpack[Options]
    ) -> AsyncIterator[AsyncPredictionStream]:
        """Return a block that streams the prediction for one row; at its end the connection is released."""
        call = self._requests.stream(row, **options)
        response = await self._run(call, stream=True)
        try:
            yield AsyncPredictionStream(response, call.deadline)
        finally:
            await response.aclose()

    async def score(
        self, body: Any, *, model: str | None = None, deadline: float | None = None
    ) -> ScoringResult:
        """Return the response of MLflow's scoring protocol to a body of it, a DataFrame or an Arrow table."""
        return await self._run(self._requests.score(body, model=model, deadline=deadline))

    async def models(self) -> list[ModelInfo]:
        """Return the served references with the contracts of the live versions."""
        return await self._run(self._requests.models())

    async def model(self, name: str) -> ModelInfo:
        """Return one served model with the contract of the live version."""
        return await self._run(self._requests.model(name))

    async def ready(self) -> Readiness:
        """Return the readiness of the service and the state of each reference."""
        return await self._run(self._requests.ready())

    async def feedback(self, prediction_id: str, outcome: Any, *, row: int = 0) -> None:
        """Record the true outcome for one row of an earlier prediction, or correct it."""
        await self.feedback_batch([Feedback(prediction_id, outcome, row)])

    async def feedback_batch(self, outcomes: Iterable[Feedback]) -> int:
        """Record several outcomes, either all or none, and return their number."""
        return await self._run(self._requests.feedback(outcomes))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, call: Call[T], *, stream: bool = False) -> T:
        steps = exchange(self._http, call)
        try:
            step = next(steps)
            while True:
                try:
                    response = await self._perform(step, stream)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _perform(self, step: httpx.Request | float, stream: bool) -> httpx.Response | None:
        if not isinstance(step, httpx.Request):
            await asyncio.sleep(step)
            return None
        response = await self._http.send(step, stream=stream)
        if stream and not results.is_event_stream(response):
            await response.aread()
        return response
