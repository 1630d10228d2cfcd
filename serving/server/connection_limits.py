"""How many connections may be open, so that descriptors remain for models and the registry."""

from __future__ import annotations

from contextlib import suppress

from serving.settings.settings import Settings

_RESERVED_DESCRIPTORS = 64
_DESCRIPTORS_PER_PROCESS = 4
_GRPC_FRACTION = 4
"""gRPC gets one of so many connections: its clients send all their requests over few."""


def http_connections(settings: Settings) -> int:
    """Return how many HTTP connections may be open, on all ports together."""
    return max(
        1, _connections(settings) - (grpc_connections(settings) if settings.grpc_port is not None else 0)
    )


def grpc_connections(settings: Settings) -> int:
    """Return how many gRPC connections may be open."""
    return max(1, _connections(settings) // _GRPC_FRACTION)


def _connections(settings: Settings) -> int:
    """Return the number for all protocols: as set, or as many as the limit for open files leaves."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != resource.RLIM_INFINITY:
            models = (
                len(settings.models) + len(settings.shadow) + settings.max_loaded * bool(settings.on_demand)
            )
            reserved = _RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_PROCESS * models * settings.replicas
            return min(settings.max_connections, max(descriptors // 4, descriptors - reserved))
    return settings.max_connections
