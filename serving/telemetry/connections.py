"""Counts of connections that were closed early, and of what was dropped on them."""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge


class Closed(StrEnum):
    """Why the service closed a connection before its caller did."""

    LIMIT = "limit"
    """As many connections as allowed were open."""
    MALFORMED = "malformed"
    """It carried no valid HTTP, or too much of it."""
    SLOW = "slow"
    """A head or a body did not arrive in time."""
    UNREAD = "unread"
    """The caller read nothing of its response for the time of the deadline."""
    UNSENT = "unsent"
    """Too many bytes waited on all connections together."""
    HANDSHAKE = "handshake"
    """Its TLS handshake failed or did not end in time."""


class ConnectionMetrics:
    """The metrics of connections, in the registry of an application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        closed = Counter(
            "serving_connections_closed_total",
            "Connections that the service closed early, by reason.",
            ("reason",),
            registry=registry,
        )
        self.closed = {reason: closed.labels(reason) for reason in Closed}
        self.trailers = Counter(
            "serving_trailers_dropped_total",
            "Trailer fields of chunked request bodies that were dropped.",
            registry=registry,
        )
        self.accept_errors = Counter(
            "serving_accept_errors_total",
            "Failures to accept a connection, as when no file descriptor is left.",
            registry=registry,
        )
        self.certificate_broken = Gauge(
            "serving_tls_certificate_broken",
            "1 while the changed files of the TLS certificate cannot be loaded and the old one is in use.",
            registry=registry,
        )
        self.open = Gauge("serving_connections", "HTTP connections that are open.", registry=registry)
        self.unsent = Gauge(
            "serving_unsent_bytes",
            "Bytes of large responses that wait for their callers to read them.",
            registry=registry,
        )
