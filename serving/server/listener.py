"""uvicorn's server with its own code to accept connections.

uvloop does not count a connection before the end of its TLS handshake, accepts all waiting connections at
once even if they use all file descriptors, and never reloads its certificate.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from serving.server.header_checks import refusal
from serving.server.tls_certificate import Certificate
from serving.telemetry.connection_metrics import Closed, ConnectionMetrics

log = logging.getLogger("serving")
_MAX_ACCEPTED_AT_ONCE = 16
_RETRY_SECONDS = 0.25
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class HttpServer(uvicorn.Server):
    """uvicorn's server, whose sockets accept within limits.

    Args:
        config: configuration of uvicorn, without a certificate.
        max_connections: maximum number of open connections.
        handshake_seconds: maximum time of a TLS handshake.
        certificate: certificate for TLS; None serves without TLS.
        metrics: counters of closed connections.
        on_started: called in the event loop once the sockets accept connections.
        on_closed: called before the sockets are closed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        max_connections: int,
        handshake_seconds: float,
        certificate: Certificate | None,
        metrics: ConnectionMetrics,
        on_started: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_started, self._on_closed = on_started, on_closed
        self._max_connections, self._handshake_seconds = max_connections, handshake_seconds
        self._certificate, self._metrics = certificate, metrics
        self._opening: set[asyncio.Task[None]] = set()
        metrics.open.set_function(lambda: len(self.server_state.connections) + len(self._opening))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self.servers = [_Listener(listening, self._accepted, self._metrics) for listening in sockets or ()]  # type: ignore[misc]  # by duck type
        self.started = True
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, finish the open requests, and stop the application."""
        self._on_closed()
        await super().shutdown(sockets)

    def _accepted(self, connection: socket.socket) -> None:
        if self._is_full():
            self._metrics.closed[Closed.LIMIT].inc()
            with connection, suppress(OSError):
                if not self._certificate:
                    connection.send(refusal(503, "Too many connections are open.", {"Retry-After": "1"}))
            return
        task = asyncio.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _is_full(self) -> bool:
        return len(self.server_state.connections) + len(self._opening) >= self._max_connections

    async def _open(self, connection: socket.socket) -> None:
        tls: dict[str, Any] = {}
        if self._certificate:
            tls = {"ssl": self._certificate.context(), "ssl_handshake_timeout": self._handshake_seconds}
        protocol_factory = partial(
            cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol_factory, connection, **tls)
        except OSError:  # including TLS errors and a handshake timeout
            self._metrics.closed[Closed.HANDSHAKE].inc()
            connection.close()


class _Listener:
    """Accepts connections on one socket; has the methods of `asyncio.Server` that uvicorn uses."""

    def __init__(
        self, listening: socket.socket, accepted: Callable[[socket.socket], None], metrics: ConnectionMetrics
    ) -> None:
        listening.setblocking(False)
        self._socket, self._accepted, self._metrics = listening, accepted, metrics
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._start()

    def close(self) -> None:
        """Stop accepting connections."""
        self._loop.remove_reader(self._socket)
        if self._retry:
            self._retry.cancel()

    async def wait_closed(self) -> None:
        """Return at once, since uvicorn itself waits for the connections."""

    def _start(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_MAX_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._metrics.accept_errors.inc()
                if error.errno in _OUT_OF_RESOURCES:
                    self._pause(error)
                return
            connection.setblocking(False)
            self._accepted(connection)

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a moment, since the loop would otherwise retry all the time."""
        log.warning("cannot accept connections; retrying in %g s: %s", _RETRY_SECONDS, error)
        self._loop.remove_reader(self._socket)
        self._retry = self._loop.call_later(_RETRY_SECONDS, self._start)
