"""Start of the service: uvicorn with the application on its sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import uvicorn
from prometheus_client import disable_created_metrics

from serving import private_files
from serving.app import create_asgi_app
from serving.auth.host_and_origin import HostNames
from serving.http.application import ServingApp
from serving.http.unsent_responses import UnsentBytes
from serving.processes import privileges
from serving.registry import blocking_calls
from serving.server import signals
from serving.server.connection_limits import http_connections, open_files_shortage
from serving.server.http_protocol import LimitedHttpProtocol
from serving.server.listener import HttpServer
from serving.server.sockets import Sockets, StartupError, describe, open_sockets
from serving.server.tls_certificate import Certificate
from serving.settings.settings import Settings
from serving.telemetry.connection_metrics import ConnectionMetrics

log = logging.getLogger("serving")
# Longer than the pools of clients and load balancers keep a connection (60 s), so that they close it.
_KEEP_ALIVE_SECONDS = 75


def serve(settings: Settings) -> None:
    """Serve until a signal, then drain.

    Raises:
        StartupError: a socket or the certificate cannot be opened, or too few files can be open.
        ApiKeyFileError: the key file cannot be read.
        TracingConfigError: traces are enabled but cannot be exported.
    """
    _allow_many_connections()
    if shortage := open_files_shortage(settings):
        raise StartupError(shortage)
    # Otherwise each counter and histogram has an additional, unused series.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped
    sockets = open_sockets(settings, os.environ)
    private_files.restrict(settings, settings)
    privileges.hide_memory()
    app, front = create_asgi_app(settings)
    metrics, max_connections = ConnectionMetrics(front.metrics.registry), http_connections(settings)
    unsent = UnsentBytes(settings.max_unsent_bytes)
    metrics.unsent.set_function(lambda: unsent.used)
    front.certificate = _certificate(settings, metrics)
    config = uvicorn.Config(
        app,
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
    front.admin_port = sockets.admin_port()
    if not settings.allowed_hosts and sockets.is_loopback():
        front.hosts, front.probes_by_any_name = HostNames(()), False
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
        on_started=lambda: signals.handle(
            asyncio.get_running_loop(),
            partial(_reload, front),
            lambda: _log_state(front, len(server.server_state.connections)),
        ),
        on_closed=sockets.remove_file,
    )
    server.run(sockets=sockets.all())


def _exit() -> None:
    """End the process, without waiting for the threads of abandoned registry calls."""
    if blocking_calls.is_any_left():
        logging.shutdown()
        os._exit(0)
    sys.exit(0)


def _reload(front: ServingApp) -> None:
    log.info("received SIGHUP: reloading the certificate, the API keys and the files of features, if any")
    if front.certificate:
        front.certificate.reload()
    if front.guard:
        front.guard.reload()
    for reload in front.reloads:
        reload()


def _log_state(front: ServingApp, connections: int) -> None:
    states = []
    for slot in front.slots:
        version = f", version {slot.live.version.version}" if slot.live else ""
        states.append(f"{slot.reference} is {slot.state}{version}")
    log.info("received SIGUSR1: %s; open connections: %d", "; ".join(states), connections)


def _log_started_message(settings: Settings, sockets: Sockets) -> None:
    scheme = "https" if settings.tls_cert else "http"
    served = ", ".join(map(str, settings.models))
    addresses = ", ".join(describe(each, scheme) for each in sockets.main)
    log.info("serving %s at %s (status page; see also /docs and /ready)", served, addresses)
    if sockets.admin:
        address = describe(sockets.admin, scheme)
        log.info("admin endpoints (status page, metrics, history) are at %s", address)
    if not settings.keys_file and not sockets.is_local():
        log.warning("listening on %s without API keys: set SERVING_KEYS_FILE or restrict access", addresses)


def _certificate(settings: Settings, metrics: ConnectionMetrics) -> Certificate | None:
    if not (settings.tls_cert and settings.tls_key):
        return None
    _check_readable("SERVING_TLS_CERT", settings.tls_cert)
    _check_readable("SERVING_TLS_KEY", settings.tls_key)
    try:
        return Certificate(settings.tls_cert, settings.tls_key, metrics.certificate_broken)
    except OSError as error:
        raise StartupError(
            f"SERVING_TLS_CERT, SERVING_TLS_KEY: cannot load the certificate: {error}"
        ) from error


def _check_readable(variable: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise StartupError(f"{variable}: cannot read {path}: {error.strerror}") from error


def _allow_many_connections() -> None:
    """Raise the soft limit for open files, often 1,024, to the hard limit."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
