"""The last responses of one version, by request, for the models in `SERVING_CACHED_MODELS`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from serving.models.model_calls import Part

_MAX_REQUEST_BYTES, _MAX_RESPONSE_BYTES = 4096, 65_536


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """The body of a response, its rows, and the headers of its content."""

    body: bytes
    parts: Sequence[Part]
    content_headers: Sequence[tuple[bytes, bytes]]


class PredictionCache:
    """Keeps small responses to small requests; the least recently used one is dropped first.

    Args:
        max_entries: the maximum number of responses.
    """

    def __init__(self, max_entries: int) -> None:
        self._responses: LRUCache[Hashable, CachedResponse] = LRUCache(max_entries)

    def find(self, key: Hashable) -> CachedResponse | None:
        """Return the response to an identical request, if there is one."""
        return self._responses.get(key)

    def accepts(self, request_bytes: int, response_bytes: int) -> bool:
        """Return whether the bodies of a request and its response are small enough to be kept."""
        return request_bytes <= _MAX_REQUEST_BYTES and response_bytes <= _MAX_RESPONSE_BYTES

    def add(self, key: Hashable, response: CachedResponse) -> None:
        """Keep a response."""
        self._responses[key] = response
