"""Limits for open connections that leave file descriptors for models and the registry."""

from __future__ import annotations

from contextlib import suppress

from serving.settings.settings import Settings

_RESERVED_DESCRIPTORS = 64
_DESCRIPTORS_PER_PROCESS = 4
_GRPC_DIVISOR = 4
"""gRPC gets the total divided by this, since its clients send many requests over one."""


def http_connections(settings: Settings) -> int:
    """Return the maximum number of open HTTP connections, for all ports together."""
    return max(
        1, _connections(settings) - (grpc_connections(settings) if settings.grpc_port is not None else 0)
    )


def grpc_connections(settings: Settings) -> int:
    """Return the maximum number of open gRPC connections."""
    return max(1, _connections(settings) // _GRPC_DIVISOR)


def _connections(settings: Settings) -> int:
    """Return the maximum for all protocols: the setting, or less if the limit for open files is too low."""
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
