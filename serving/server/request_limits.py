"""Limits on the sizes of requests, which the parser enforces, and checks that uvicorn's parser lacks.

Heads and trailers have a maximum size, the fields that frame a request are checked (`header_checks`),
trailers are dropped, and an `Upgrade` is ignored. Callbacks that run for every request avoid `super()`, which
takes longer than the method it calls.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.server.header_checks import CHECKED_FIELDS, FieldChecker, Invalid, too_long, without_upgrade
from serving.telemetry.connection_metrics import ConnectionMetrics

_MAX_HEAD_BYTES = 65536
_MAX_TRAILER_BYTES = 8192
# A client that is disconnected while it still sends may never read its response, so read on to some length.
_MAX_DISCARDED_BYTES = 2**21
# Clients must be able to repeat pipelined requests that got no response (RFC 9112, 9.3.2).
_MAX_PIPELINED = 128


class CheckedParsing(HttpToolsProtocol):
    """The parser callbacks of the protocol.

    Args:
        metrics: counters of dropped data.
    """

    def __init__(self, *args: Any, metrics: ConnectionMetrics, **more: Any) -> None:
        super().__init__(*args, **more)
        self._metrics = metrics
        self._fields = FieldChecker()
        self._head_since: float | None = None
        """Time of the first byte of an incomplete head."""
        self._idle_since: float | None = self.loop.time()
        """Time since when the connection is idle, where uvicorn's keep-alive timer does not run."""
        self._in_body = False
        """True from the end of a head to the end of its body."""
        self._upgrades = False
        """True if the last head must be parsed again, without its `Upgrade`."""
        self._chunk_bytes = self._unread_bytes = self._head_bytes = self._discarded_bytes = 0
        self._gap_bytes = self._trailer_bytes = 0
        """Bytes since the last part of a body, and the bytes of trailer fields in them."""

    def _parse(self, data: bytes) -> None:
        """Parse bytes.

        Raises:
            httptools.HttpParserError: the bytes are not valid HTTP; `_reason` returns the details.
            Invalid: the bytes exceed a limit.
        """
        self._chunk_bytes = self._unread_bytes = length = len(data)
        if self._head_since is not None:
            self._head_bytes += length
        if length <= _MAX_TRAILER_BYTES and self._gap_bytes == 0:
            self._gap_bytes = length
            self._feed(data)
        else:
            self._feed_pieces(memoryview(data))
        if self._head_since is not None and self._head_bytes > _MAX_HEAD_BYTES:
            raise too_long("head", _MAX_HEAD_BYTES)

    def _feed_pieces(self, rest: memoryview) -> None:
        size = _MAX_TRAILER_BYTES
        while rest:
            self._gap_bytes += min(size, len(rest))
            self._feed(rest[:size])
            if self._head_since is None and self._gap_bytes > _MAX_TRAILER_BYTES:
                raise too_long("trailers", _MAX_TRAILER_BYTES)
            rest = rest[size:]
            if not self._fields.is_chunked:
                size = len(rest)  # without chunks there are no trailers to count

    def _reason(self, error: Exception) -> Invalid:
        """Return the reason of an exception of the parser."""
        if isinstance(error, Invalid):
            return error
        if self._fields.invalid is None and self._head_since is not None and self._size() > _MAX_HEAD_BYTES:
            return too_long("head", _MAX_HEAD_BYTES)
        return self._fields.invalid or Invalid("This is not a valid HTTP/1.1 request.")

    def _feed(self, data: bytes | memoryview) -> None:
        """Feed the parser; parse a head with an `Upgrade` again without it (RFC 9110, 7.8)."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            head = without_upgrade(
                self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
            )
            self.parser, self._upgrades = httptools.HttpRequestParser(self), False
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        """Start a new request."""
        HttpToolsProtocol.on_message_begin(self)
        self._head_since, self._idle_since = self.loop.time(), None
        self._fields.reset()
        # Some of these bytes may belong to the request before; the exact size is computed if it matters.
        self._head_bytes, self._unread_bytes = self._unread_bytes, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a valid header field, or drop a trailer field."""
        if self._head_since is None:
            self._metrics.trailers.inc()
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > _MAX_TRAILER_BYTES:
                self._fields.refuse(too_long("trailers", _MAX_TRAILER_BYTES))
            return
        name = name.lower()
        if name in CHECKED_FIELDS:
            value = self._fields.check(name, value)
            self.expect_100_continue |= name == b"expect"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check a complete head, and start its request."""
        # These counts may include a body, so that the exact size is computed only above the limit.
        is_large = self._head_bytes > _MAX_HEAD_BYTES or self._chunk_bytes > _MAX_HEAD_BYTES
        if is_large and self._size() > _MAX_HEAD_BYTES:
            self._fields.refuse(too_long("head", _MAX_HEAD_BYTES))
        parser = self.parser
        version = parser.get_http_version()
        self._fields.check_head(parser.get_method(), self.url, version)
        if parser.should_upgrade():
            self._upgrades = True
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._fields.refuse(
                Invalid(f"More than {_MAX_PIPELINED} requests are waiting on this connection.", 503)
            )
        if version == "1.0":
            self.expect_100_continue = False
        self._head_since = None
        self._discarded_bytes = self._gap_bytes = self._trailer_bytes = 0
        self._in_body = True
        HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body; after the response, discard it up to a maximum."""
        self._gap_bytes = 0
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > _MAX_DISCARDED_BYTES:
                self.transport.close()
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Complete the request, unless its head must be parsed again."""
        if not self._upgrades:
            self._gap_bytes, self._in_body = 0, False
            HttpToolsProtocol.on_message_complete(self)

    def _should_upgrade(self) -> bool:
        return False

    def _size(self) -> int:
        """Return the bytes of the last head that are parsed so far."""
        headers = self.headers or ()
        return len(getattr(self, "url", b"")) + sum(len(name) + len(value) for name, value in headers)
