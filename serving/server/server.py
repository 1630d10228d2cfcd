"""Start of the service: uvicorn with the application on its sockets."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial

import uvicorn
from prometheus_client import disable_created_metrics

from serving import private_files
from serving.app import create_asgi_app
from serving.auth.host_and_origin import HostNames
from serving.http.unsent_responses import UnsentBytes
from serving.processes import confinement
from serving.registry import blocking_calls
from serving.server.connection_limits import http_connections
from serving.server.http_protocol import LimitedHttpProtocol
from serving.server.listener import HttpServer
from serving.server.tls_certificate import Certificate
from serving.settings.settings import Settings
from serving.telemetry.connections import ConnectionMetrics

log = logging.getLogger("serving")
# Longer than the pools of clients and load balancers keep a connection (60 s), so that they close it.
_KEEP_ALIVE_SECONDS = 75


class StartupError(Exception):
    """The service cannot start with a setting, which the message names."""


def serve(settings: Settings) -> None:
    """Serve until a signal, then drain.

    Raises:
        StartupError: a port is in use, or the certificate cannot be loaded.
        ApiKeyFileError: the key file cannot be read.
        TracingConfigError: traces are enabled but cannot be exported.
    """
    _allow_many_connections()
    # Otherwise each counter and histogram has an additional, unused series.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped
    _check_ports(settings)
    private_files.restrict(settings, settings)
    confinement.hide_memory()
    app, front = create_asgi_app(settings)
    metrics, max_connections = ConnectionMetrics(front.metrics.registry), http_connections(settings)
    unsent = UnsentBytes(settings.max_unsent_bytes)
    metrics.unsent.set_function(lambda: unsent.used)
    front.certificate = _certificate(settings, metrics)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(  # type: ignore[arg-type]  # a factory instead of a class
            LimitedHttpProtocol, limits=settings, unsent=unsent, metrics=metrics
        ),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sockets = [config.bind_socket()]
    if settings.admin_port is not None:
        sockets.append(socket.create_server((settings.host, settings.admin_port)))
        front.admin_port = sockets[1].getsockname()[1]
    if not settings.allowed_hosts and ipaddress.ip_address(sockets[0].getsockname()[0]).is_loopback:
        front.hosts, front.probes_by_any_name = HostNames(()), False
    for listening in sockets:
        listening.listen(config.backlog)  # before the address is logged, so that clients can connect at once
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    _log_started_message(settings, sockets)
    if max_connections < settings.max_connections and settings.grpc_port is None:
        log.warning(
            "accepting at most %d connections because of the limit for open files: raise `ulimit -n` or set "
            "SERVING_MAX_CONNECTIONS",
            max_connections,
        )
    # After the drain, uvicorn raises the signal again, which must not look like a failure.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: _exit())
    server = HttpServer(
        config,
        max_connections=max_connections,
        handshake_seconds=settings.read_timeout_seconds,
        certificate=front.certificate,
        metrics=metrics,
    )
    server.run(sockets=sockets)


def _exit() -> None:
    """End the process, without waiting for the threads of abandoned registry calls."""
    if blocking_calls.is_any_left():
        logging.shutdown()
        os._exit(0)
    sys.exit(0)


def _log_started_message(settings: Settings, sockets: list[socket.socket]) -> None:
    scheme = "https" if settings.tls_cert else "http"
    host, port = sockets[0].getsockname()[:2]
    served = ", ".join(map(str, settings.models))
    log.info("serving %s at %s://%s:%d (status page; see also /docs and /ready)", served, scheme, host, port)
    if len(sockets) > 1:
        log.info(
            "admin endpoints (status page, metrics, history) are at %s://%s:%d",
            scheme,
            *sockets[1].getsockname()[:2],
        )
    if not settings.keys_file and not ipaddress.ip_address(host).is_loopback:
        log.warning("listening on %s without API keys: set SERVING_KEYS_FILE or restrict access", host)


def _check_ports(settings: Settings) -> None:
    """Check the ports before anything starts, as uvicorn does for the main port."""
    for name in ("grpc_port", "admin_port"):
        if port := getattr(settings, name):
            try:
                socket.create_server((settings.host, port)).close()
            except OSError as error:
                raise StartupError(f"SERVING_{name.upper()}: {error}") from error


def _certificate(settings: Settings, metrics: ConnectionMetrics) -> Certificate | None:
    if not (settings.tls_cert and settings.tls_key):
        return None
    try:
        return Certificate(settings.tls_cert, settings.tls_key, metrics.certificate_broken)
    except OSError as error:
        raise StartupError(
            f"SERVING_TLS_CERT, SERVING_TLS_KEY: cannot load the certificate: {error}"
        ) from error


def _allow_many_connections() -> None:
    """Raise the soft limit for open files, often 1,024, to the hard limit."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
