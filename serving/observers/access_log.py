"""The access log: a line for each request, or for a share of them.

Without a line for every request, failures (5xx) still have one, up to a hundred per second: the log must not
slow down a service that is overloaded. The next line reports the number of those that were left out.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from serving.hooks import InferenceEvent, RequestHook
from serving.request_context import RequestContext
from serving.telemetry.rate_limit import FixedWindow

log = logging.getLogger("serving.access")
_MAX_FAILURES_PER_SECOND = 100
_PROBES = frozenset(
    {"/health", "/livez", "/ready", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"}
)


class AccessLog(RequestHook):
    """Logs failures, and this share of the other requests."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._failures = FixedWindow(_MAX_FAILURES_PER_SECOND, time.monotonic)
        self._left_out = 0

    def on_response(self, event: InferenceEvent) -> None:
        """Log a successful prediction."""
        self.ended(event.context, 200)

    def ended(self, context: RequestContext, status: int) -> None:
        """Log a request that ended with this status, which no client received if it has disconnected."""
        if self._is_logged(context.path, status):
            fields: dict[str, Any] = {
                "method": context.method,
                "path": context.path,
                "status": status,
                "duration_ms": round((time.perf_counter() - context.started) * 1e3, 3),
                "client": context.client,
            }
            if context.scope:
                fields["scheme"] = context.scope["scheme"]
                if root_path := context.scope.get("root_path"):
                    fields["root_path"] = root_path
            if self._left_out:
                fields["left_out"], self._left_out = self._left_out, 0
            level = logging.WARNING if status >= 500 else logging.INFO
            extra = fields | context.log_fields
            log.log(level, "%s %s %d", fields["method"], fields["path"], status, extra=extra)

    def _is_logged(self, path: str, status: int) -> bool:
        if self.share == 1:
            return True
        if path in _PROBES:
            return False
        if status < 500:
            return random.random() < self.share  # noqa: S311  # the choice is no secret
        allowed = bool(self._failures.acquire())
        self._left_out += not allowed
        return allowed
