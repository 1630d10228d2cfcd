"""The state of one HTTP request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from serving.http.problem_details import Respond
from serving.http.request_id import request_id
from serving.request_context import RequestContext

Header = tuple[bytes, bytes]
JSON_CONTENT: Sequence[Header] = ((b"content-type", b"application/json"),)


class HttpContext(RequestContext):
    """The state of one HTTP request.

    Args:
        scope: the ASGI scope.
        receive: returns the next ASGI message of the client.
        send: passes an ASGI message to the client.
    """

    __slots__ = ("body", "content_headers", "media_type", "receive", "respond", "send", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, path = scope.get("client"), scope["path"]
        if root_path := scope.get("root_path"):
            path = path.removeprefix(root_path)
        super().__init__(
            request_id(scope["headers"]),
            scope["method"],
            path,
            scope["headers"],
            client[0] if client else None,
            scope,
        )
        self.receive, self.send = receive, send
        self.body = b""
        self.media_type: Any = None
        """The format of body and response, as the endpoint defines it; part of the key of the cache."""
        self.content_headers = JSON_CONTENT
        """The headers that describe the body of the response."""
        self.respond: Respond | None = None
        """Renders an error in place of the endpoint's own function, once a streamed response has begun."""
        self.status: int | None = None
        """The status that FastAPI's part of the application has sent."""


def context_of(scope: Mapping[str, Any]) -> HttpContext:
    """Return the context of a request to one of FastAPI's routes."""
    context: HttpContext = scope["context"]
    return context
