"""Parses server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from serving.client.errors import UnexpectedResponse, from_problem


class ChunkParser:
    """Parses a stream of predictions from bytes.

    It splits lines itself: `iter_lines` of httpx also splits at separators that JSON texts may contain.
    """

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._rest = b""
        self.is_complete = False
        """The event `end` has arrived."""

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the chunks that are complete with these bytes.

        Raises:
            ResponseError: The model failed after its first chunk.
            UnexpectedResponse: The data of an event are not JSON.
        """
        *events, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            yield from self._chunks(event)

    def _chunks(self, event: bytes) -> Iterator[Any]:
        fields = [line.partition(b":")[::2] for line in event.split(b"\n")]
        values = {name: value.removeprefix(b" ") for name, value in fields}
        data = b"\n".join(value.removeprefix(b" ") for name, value in fields if name == b"data")
        if not data:
            return
        try:
            parsed = json.loads(data)
        except ValueError:
            raise UnexpectedResponse("An event of the stream is not JSON.") from None
        match values.get(b"event", b""):
            case b"error":
                raise from_problem(parsed, _status(parsed), self._request_id)
            case b"end":
                self.is_complete = True
            case _:
                yield parsed


def _status(problem: Any) -> int:
    status = problem.get("status") if isinstance(problem, dict) else None
    return status if isinstance(status, int) else 500
