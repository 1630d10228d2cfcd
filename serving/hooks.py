"""A request and its answer, as those are told who watch: journal, traces, drift, shadows.

Nobody is told anything before the answer is on its way, and who watches must not block.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part

Header: TypeAlias = tuple[bytes, bytes]
Refused: TypeAlias = Callable[[MutableMapping[str, Any], int, Exception], None]
"""Is called with a request that was not answered as meant."""


class InferenceEvent(NamedTuple):
    """A request for predictions that was answered with 200; times are of the performance counter.

    One is made for each request: a frozen dataclass would take a microsecond more to make.
    """

    live: LoadedModel
    """The version that answered."""
    scope: MutableMapping[str, Any]
    """The request's ASGI scope: `path`, `headers` and `request_id` among others."""
    body: bytes
    """The request's body as it came; empty over gRPC, where `parts` have the rows."""
    answer: Sequence[bytes]
    """The answer's body, in pieces; of a streamed answer the JSON of each bit, of one over gRPC nothing."""
    parts: Sequence[Part]
    """The rows as they were queued, when, and what the model answered.

    There are none if the answer was cached; `scope["answered_before"]` has those of the request before then.
    """
    began: float
    ended: float

    @property
    def source_parts(self) -> Sequence[Part]:
        """The parts from which its answer was made: its own, or those of the request before."""
        return self.parts or self.scope.get("answered_before", ())


class RequestHook:
    """One who watches; whoever does not care for a moment inherits that it does nothing."""

    def on_request(self, scope: MutableMapping[str, Any]) -> None:
        """A request for predictions has come; what it asks for is not known yet, nor who asks."""

    def response_headers(self, scope: MutableMapping[str, Any]) -> Sequence[Header]:
        """Headers that the answer is to carry; asked for as soon as it is there, before it is sent."""
        return ()

    def on_response(self, exchange: InferenceEvent) -> None:
        """A request for predictions was answered."""

    def on_error(self, scope: MutableMapping[str, Any], status: int, error: Exception) -> None:
        """A request was not answered as meant; `scope["leased"]` has model and version, if any were."""
