"""uvicorn's HTTP protocol with one write per response, with limits, and without lost requests at a stop.

uvicorn limits neither the size of a head nor the time to receive it. Requests need no timers for these
limits: each connection checks its timeouts at a fixed interval.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.errors import Overloaded
from serving.http.unsent_responses import ReadProgress, UnsentBytes
from serving.server.header_checks import Invalid, refusal
from serving.server.request_limits import CheckedParsing
from serving.server.response_corking import Corked
from serving.settings.groups import LimitSettings
from serving.telemetry.connection_metrics import Closed, ConnectionMetrics

_LINGER_SECONDS = 1.0


class LimitedHttpProtocol(CheckedParsing):
    """uvicorn's protocol on a corked transport, within limits.

    Args:
        limits: limits for sizes and times.
        unsent: limit for responses that clients have not read yet.
        metrics: counters of closed connections and dropped data.
    """

    def __init__(
        self,
        *args: Any,
        limits: LimitSettings,
        unsent: UnsentBytes,
        metrics: ConnectionMetrics,
        **more: Any,
    ) -> None:
        super().__init__(*args, metrics=metrics, **more)
        self._limits, self._unsent = limits, unsent
        self._interval = min(limits.read_timeout_seconds, limits.deadline_seconds) / 2
        self._stopping = False
        self._body_since: tuple[RequestResponseCycle, float] | None = None
        """The request whose body is incomplete, and the time when this was first observed."""
        self._reading = ReadProgress(limits.deadline_seconds)
        self._reserved = 0
        self._timeout_check: asyncio.TimerHandle | None = None
        self._last_response: bytes | None = None
        """The last response before the close; set when the connection is refused."""
        self._active: RequestResponseCycle | None = None
        """The request in progress; `cycle` is the request that was parsed last."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # like uvicorn
        """Start the timeout checks of a new connection."""
        super().connection_made(Corked(transport, self.loop))  # type: ignore[arg-type]  # by duck type
        self._timeout_check = self.loop.call_later(self._interval, self._check_timeouts)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the requests of a closed connection."""
        if self._timeout_check:
            self._timeout_check.cancel()
        self._release()
        if self._active is not None and not self._active.response_complete:
            self._drop(self._active)
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        if self._last_response is not None or self.transport.is_closing():
            return  # it was refused: discard the rest
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except (httptools.HttpParserError, Invalid) as error:
            self._metrics.closed[Closed.MALFORMED].inc()
            reason = self._reason(error)
            self._refuse(reason.status, reason.detail)

    def on_response_complete(self) -> None:
        """Start the next request, or close the connection if it was refused after this one."""
        is_last = not self.pipeline
        HttpToolsProtocol.on_response_complete(self)
        if is_last and self._last_response is not None:
            self.transport.write(self._last_response)
            self.transport.close()
        if self._reserved:
            self.loop.call_soon(self._release_if_sent)  # after the flush of this response

    def pause_writing(self) -> None:
        """Count the unread bytes that are not counted yet."""
        super().pause_writing()
        if (more := self.transport.get_write_buffer_size() - self._reserved) > 0:
            try:
                self._reserve(more)
            except Overloaded:
                self._abort(Closed.UNSENT)

    def resume_writing(self) -> None:
        """Continue after the client has read most of the response."""
        super().resume_writing()
        self._release_if_sent()

    def shutdown(self) -> None:
        """Close the connection because the server stops; an idle one stays open for a short time.

        A request may be on its way to an idle connection, and an immediate close would reset it (RFC 9112,
        9.5).
        """
        if self._stopping or not (self.cycle is None or self.cycle.response_complete):
            super().shutdown()
        else:
            self._stopping = True
            self.loop.call_later(_LINGER_SECONDS, self.shutdown)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        cycle.scope["reserve"] = self._reserve  # type: ignore[typeddict-unknown-key]  # servers may add keys
        if self._stopping and not self.pipeline:
            cycle.keep_alive = False
        HttpToolsProtocol._start_asgi_task(self, cycle, app)

    # -- unread responses

    def _reserve(self, size: int) -> None:
        """Count bytes of a response that is about to be sent on this connection.

        Raises:
            Overloaded: too many bytes already wait for clients to read them.
        """
        if not self.transport.is_closing():  # a closed transport buffers nothing
            self._unsent.reserve(size)
            self._reserved += size

    def _release(self) -> None:
        self._unsent.release(self._reserved)
        self._reserved = 0

    def _release_if_sent(self) -> None:
        if not self.flow.write_paused and (self._active is None or self._active.response_complete):
            self._release()

    def _abort(self, reason: Closed) -> None:
        self._metrics.closed[reason].inc()
        self.transport.abort()

    # -- timeouts

    def _check_timeouts(self) -> None:
        """Disconnect a client that takes too long to send a request, or to read its response."""
        self._timeout_check = self.loop.call_later(self._interval, self._check_timeouts)
        now = self.loop.time()
        if self._reading.has_stopped(self.transport, now):
            self._abort(Closed.UNREAD)
        elif not self.transport.is_closing() and self._last_response is None:
            self._check_request_timeout(now)

    def _check_request_timeout(self, now: float) -> None:
        seconds = self._limits.read_timeout_seconds
        if self._head_since is not None:
            if now - self._head_since >= seconds:
                self._metrics.closed[Closed.SLOW].inc()
                self._refuse(408, f"The request head was not complete after {seconds:g} s.")
        elif self._idle_since is not None:
            if now - self._idle_since >= seconds:
                self.transport.close()
        elif self.cycle.response_complete:
            if self.timeout_keep_alive_task is None:
                self._idle_since = now  # bytes outside a request, or the rest of a finished one
        elif self._in_body and self._active is self.cycle:
            if self._body_since is None or self._body_since[0] is not self.cycle:
                self._body_since = self.cycle, now
            elif now - self._body_since[1] >= seconds:
                self._metrics.closed[Closed.SLOW].inc()
                self._refuse(408, f"The request body was not complete after {seconds:g} s.")

    # -- refusals

    def _refuse(self, status: int, detail: str) -> None:
        """Send an error after the responses to earlier requests, and close the connection."""
        if self.transport.is_closing():
            return
        self._last_response = refusal(status, detail)
        if self._in_body and self._withdraw():
            return
        if self._in_body or self.cycle is None or self.cycle.response_complete:
            self.transport.write(self._last_response)
            self.transport.close()

    def _withdraw(self) -> bool:
        """Withdraw the request whose body is refused; return true if the error cannot be sent now."""
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # it has not started, and earlier requests come first
            return True
        if self.cycle.response_started:
            self.transport.close()
        else:
            self._drop(self.cycle)
        return self.transport.is_closing()

    @staticmethod
    def _drop(cycle: RequestResponseCycle) -> None:
        """End a request as if its client had disconnected."""
        cycle.disconnected = True
        cycle.message_event.set()
