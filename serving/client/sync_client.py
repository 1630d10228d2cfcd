"""The synchronous client."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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


class PredictionStream:
    """A streamed prediction: iterate over its chunks once.

    Attributes:
        model: The exact version that predicts.
        request_id: Identifies the request in the log of the service.
    """

    def __init__(self, response: httpx.Response, deadline: float) -> None:
        self.model = results.version_of(response)
        self.request_id = response.headers.get("x-request-id", "")
        self._response, self._deadline = response, deadline

    def __iter__(self) -> Iterator[Any]:
        """Yield the chunks as they arrive.

        Raises:
            ClientError: The model failed after its first chunk, the next chunk is late, or the stream ended
                before its end was announced.
        """
        parser = ChunkParser(self.request_id)
        try:
            for data in self._response.iter_bytes():
                yield from parser.feed(data)
        except httpx.TimeoutException as error:
            raise deadline_exceeded(self._deadline, self.request_id) from error
        except httpx.RequestError as error:
            raise connection_failed(error) from error
        if not parser.is_complete:
            raise ended_early(self._response)


class Client:
    """A client of one service with a pool of connections; threads may share it.

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
        transport: httpx.BaseTransport | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._requests = Requests(model, deadline)
        settings = configuration(url, api_key, verify, max_connections)
        self._http = httpx.Client(transport=transport, **settings)

    def predict(self, row: Mapping[str, Any], **options: Unpack[Options]) -> PredictionResult:
        """Return the prediction for one row: the columns of the contract by name."""
        return self._run(self._requests.predict(row, **options))

    def predict_batch(
        self, rows: Iterable[Mapping[str, Any]] | Any, **options: Unpack[Options]
    ) -> BatchResult:
        """Return the predictions for rows, a DataFrame or an Arrow table, in one request.

        Rows are sent as JSON, DataFrames and tables as Arrow.
        """
        return self._run(self._requests.batch(rows, **options))

    @contextmanager
    def predict_stream(
        self, row: Mapping[str, Any], **options: Unpack[Options]
    ) -> Iterator[PredictionStream]:
        """Return a block that streams the prediction for one row; at its end the connection is released."""
        call = self._requests.stream(row, **options)
        response = self._run(call, stream=True)
        try:
            yield PredictionStream(response, call.deadline)
        finally:
            response.close()

    def score(self, body: Any, *, model: str | None = None, deadline: float | None = None) -> ScoringResult:
        """Return the response of MLflow's scoring protocol to a body of it, a DataFrame or an Arrow table."""
        return self._run(self._requests.score(body, model=model, deadline=deadline))

    def models(self) -> list[ModelInfo]:
        """Return the served references with the contracts of the live versions."""
        return self._run(self._requests.models())

    def model(self, name: str) -> ModelInfo:
        """Return one served model with the contract of the live version."""
        return self._run(self._requests.model(name))

    def ready(self) -> Readiness:
        """Return the readiness of the service and the state of each reference."""
        return self._run(self._requests.ready())

    def feedback(self, prediction_id: str, outcome: Any, *, row: int = 0) -> None:
        """Record the true outcome for one row of an earlier prediction, or correct it."""
        self.feedback_batch([Feedback(prediction_id, outcome, row)])

    def feedback_batch(self, outcomes: Iterable[Feedback]) -> int:
        """Record several outcomes, either all or none, and return their number."""
        return self._run(self._requests.feedback(outcomes))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Call[T], *, stream: bool = False) -> T:
        steps = exchange(self._http, call)
        try:
            step = next(steps)
            while True:
                try:
                    response = self._perform(step, stream)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, step: httpx.Request | float, stream: bool) -> httpx.Response | None:
        if not isinstance(step, httpx.Request):
            time.sleep(step)
            return None
        response = self._http.send(step, stream=stream)
        if stream and not results.is_event_stream(response):
            response.read()
        return response
