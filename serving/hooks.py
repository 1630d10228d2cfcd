"""Hooks around an inference request: journal, tracing, drift, rollouts.

Hooks for responses run after the response has been handed to the transport. Hooks must not block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part
from serving.request_context import RequestContext

Header: TypeAlias = tuple[bytes, bytes]


class InferenceEvent(NamedTuple):
    """A successful inference request; times are of the performance counter.

    A named tuple, because creating a frozen dataclass takes a microsecond longer per request.
    """

    live: LoadedModel
    """The version that made the predictions."""
    context: RequestContext
    body: bytes
    """The body of the request; empty over gRPC, where `parts` have the rows."""
    response: Sequence[bytes]
    """The body of the response in pieces; the JSON of each chunk if it was streamed; empty over gRPC."""
    parts: Sequence[Part]
    """The rows as they were queued, with their times and the model's output; empty if it was cached."""
    began: float
    ended: float

    @property
    def source_parts(self) -> Sequence[Part]:
        """Return the parts from which the response was made: its own, or those of the cached response."""
        return self.parts or self.context.cached_parts


class RequestHook:
    """Receives the events of requests; every method is optional."""

    def on_request(self, context: RequestContext) -> None:
        """Receive an inference request before it is authorized and before its model is known."""

    def response_headers(self, context: RequestContext) -> Sequence[Header]:
        """Return headers to add to a successful response, which is complete but not sent."""
        return ()

    def on_response(self, event: InferenceEvent) -> None:
        """Receive an inference request that succeeded."""

    def on_error(self, context: RequestContext, status: int, error: Exception) -> None:
        """Receive a request that failed; `context.model` is the leased version, if there was one."""
