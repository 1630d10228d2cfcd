"""Metrics of connections that the service closed early, and of data that it dropped."""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge


class Closed(StrEnum):
    """Why the service closed a connection before its client did."""

    LIMIT = "limit"
    """The maximum number of connections was open."""
    MALFORMED = "malformed"
    """The client sent invalid HTTP, or exceeded a limit."""
    SLOW = "slow"
    """A head or a body did not arrive in time."""
    UNREAD = "unread"
    """The client read nothing of its response for the time of the deadline."""
    UNSENT = "unsent"
    """Too many unread bytes waited on all connections together."""
    HANDSHAKE = "handshake"
    """The TLS handshake failed or timed out."""


class ConnectionMetrics:
    """Metrics of connections, in the registry of an application."""

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
            "Dropped trailer fields of chunked request bodies.",
            registry=registry,
        )
        self.accept_errors = Counter(
            "serving_accept_errors_total",
            "Failures to accept a connection, for example for lack of file descriptors.",
            registry=registry,
        )
        self.certificate_broken = Gauge(
            "serving_tls_certificate_broken",
            "1 while the changed TLS certificate cannot be loaded and the previous one is in use.",
            registry=registry,
        )
        self.open = Gauge("serving_connections", "Open HTTP connections.", registry=registry)
        self.unsent = Gauge(
            "serving_unsent_bytes",
            "Bytes of large responses that clients have not read yet.",
            registry=registry,
        )
