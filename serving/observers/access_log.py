"""The access log: a line for each request, or for a share of them.

Failures (5xx) always have one, so far as there are not more than a hundred a second: a service that sheds
load must not drown in telling so. What is left out then is counted.
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
_MOST_FAILURES = 100
_ASKED_BY_MACHINES = frozenset(
    {"/health", "/livez", "/ready", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"}
)


class AccessLog(RequestHook):
    """Tells of requests, and of this share of those that did not fail."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._failures = FixedWindow(_MOST_FAILURES, time.monotonic)
        self._left_out = 0

    def on_response(self, exchange: InferenceEvent) -> None:
        """A request for predictions was answered."""
        self.ended(exchange.context, 200)

    def ended(self, context: RequestContext, status: int) -> None:
        """A request was answered with this status, or would have been if its caller had stayed."""
        if self._is_told(context.path, status):
            told: dict[str, Any] = {
                "method": context.method,
                "path": context.path,
                "status": status,
                "duration_ms": round((time.perf_counter() - context.started) * 1e3, 3),
                "client": context.client,
            }
            if self._left_out:
                told["left_out"], self._left_out = self._left_out, 0
            level = logging.WARNING if status >= 500 else logging.INFO
            log.log(level, "%s %s %d", told["method"], told["path"], status, extra=told | context.log_fields)

    def _is_told(self, path: str, status: int) -> bool:
        if self.share == 1:
            return True
        if path in _ASKED_BY_MACHINES:
            return False
        if status < 500:
            return random.random() < self.share  # noqa: S311  # whom it hits is no secret
        allowed = bool(self._failures.acquire())
        self._left_out += not allowed
        return allowed
