"""The state of one request, in every protocol."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from serving.auth.api_keys import ApiKey, Scope
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part

GRPC = "gRPC"
_PROCESS, _COUNTER = os.urandom(8).hex(), itertools.count()


def new_id() -> str:
    """Return a unique request id."""
    return f"{_PROCESS}{next(_COUNTER):016x}"


class RequestContext:
    """The state of one request, from its head to its outcome.

    Args:
        request_id: the client's own id, or a new one.
        method: the HTTP method, or `gRPC`.
        path: the path over HTTP, the name of the method over gRPC.
        headers: the headers, or the metadata of gRPC; names are in lower case.
        client: the address of the client.
        scope: the ASGI scope; empty over gRPC.
    """

    __slots__ = (
        "cached_parts",
        "client",
        "has_keys",
        "headers",
        "is_admin_port",
        "key",
        "leased_at",
        "method",
        "model",
        "parts",
        "path",
        "protocol",
        "request_id",
        "scope",
        "seconds_left",
        "started",
        "state",
        "timeout",
        "trace_id",
    )

    def __init__(
        self,
        request_id: str,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        client: str | None,
        scope: Mapping[str, Any],
    ) -> None:
        self.request_id, self.method, self.path = request_id, method, path
        self.headers, self.client, self.scope = headers, client, scope
        self.started = time.perf_counter()
        """The start of the request, by the performance counter, as are all times here."""
        self.has_keys = False
        self.is_admin_port: bool | None = None
        """Whether the request came to the port of operators; None: they have no port of their own."""
        """API keys are enabled."""
        self.key: ApiKey | None = None
        """The client's API key; None where keys are disabled or the route is open."""
        self.timeout = math.inf
        """The seconds that the client allows for the request."""
        self.seconds_left: float | None = None
        """The rest of the deadline, once a model on demand has been loaded."""
        self.model: LoadedModel | None = None
        """The leased version; None before the lease."""
        self.leased_at = 0.0
        self.parts: list[Part] = []
        """The rows as they were queued; empty if the response came from the cache."""
        self.cached_parts: Sequence[Part] = ()
        """The parts of the earlier request whose cached response was reused."""
        self.protocol = ""
        """The protocol of an inference request, once its endpoint runs."""
        self.trace_id = ""
        self.state: dict[str, Any] = {}
        """Values that hooks keep between their calls."""

    @property
    def model_labels(self) -> tuple[str, str]:
        """Return name and version of the leased model for metrics, both empty before the lease."""
        return (self.model.version.name, self.model.version.label) if self.model else ("", "")

    @property
    def log_fields(self) -> dict[str, Any]:
        """Return the fields of the request for the `extra` argument of a log call."""
        fields = {"request_id": self.request_id}
        if self.model:
            fields["model"], fields["version"] = self.model_labels
        if self.trace_id:
            fields["trace_id"] = self.trace_id
        return fields

    @property
    def sees_reasons(self) -> bool:
        """Check whether the client may read reasons, which can contain texts of model code.

        Where keys are enabled, only administrators may.
        """
        return not self.has_keys or (self.key is not None and self.key.scope is Scope.ADMIN)

    @property
    def sees_registry(self) -> bool:
        """Check whether the client may read the address of the registry: only operators may."""
        return self.is_admin_port or (self.sees_reasons and (self.has_keys or self.is_admin_port is None))
