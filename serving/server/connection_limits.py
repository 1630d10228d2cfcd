"""Limits for open connections that leave file descriptors for models and the registry."""

from __future__ import annotations

from contextlib import suppress

from serving.settings.settings import Settings

_RESERVED_DESCRIPTORS = 64
_DESCRIPTORS_PER_PROCESS, _MIN_DESCRIPTORS_PER_PROCESS = 4, 2
"""A process has a socket and a pipe; a version that loads beside the live one doubles them."""
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


def open_files_shortage(settings: Settings) -> str | None:
    """Return why the limit for open files is too low to serve at all; None if it is not."""
    descriptors = _max_open_files()
    needed = _RESERVED_DESCRIPTORS + _MIN_DESCRIPTORS_PER_PROCESS * _processes(settings)
    if descriptors is None or descriptors >= needed:
        return None
    return f"ulimit -n: {descriptors} open files are too few for SERVING_MODELS; allow at least {needed}"


def _connections(settings: Settings) -> int:
    """Return the maximum for all protocols: the setting, or less if the limit for open files is too low."""
    descriptors = _max_open_files()
    if descriptors is None:
        return settings.max_connections
    reserved = _RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_PROCESS * _processes(settings)
    return min(settings.max_connections, max(descriptors // 4, descriptors - reserved))


def _processes(settings: Settings) -> int:
    models = len(settings.models) + len(settings.shadow) + settings.max_loaded * bool(settings.on_demand)
    return models * settings.replicas


def _max_open_files() -> int | None:
    """Return the limit for open files; None if there is none, or the system does not report it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if descriptors == resource.RLIM_INFINITY else descriptors
    return None
