"""Health check of the container image.

`python -m serving.server.healthcheck` reads the environment variables of the service; it cannot see its
flags. The exit status is 0 if the service is alive. It imports only the standard library, because it runs
several times per minute and imports take time.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from serving.settings import platforms

_TIMEOUT_SECONDS = 2.0


def is_alive(environment: Mapping[str, str]) -> bool:
    """Check whether a service with these settings responds on this machine; do not verify its certificate."""
    variable = platforms.first_set(platforms.PORT_VARIABLES, environment)
    # The command `serving serve` listens on SageMaker's port without a variable.
    ports = [environment[variable]] if variable else [platforms.DEFAULT_PORT, platforms.SAGEMAKER_PORT]
    return any(_responds(environment, int(port)) for port in ports)


def _responds(environment: Mapping[str, str], port: int) -> bool:
    try:
        with closing(_connection(environment, port)) as connection:
            connection.request("GET", "/livez")
            with connection.getresponse() as response:
                return response.status == 200
    except (OSError, HTTPException):
        return False


def _connection(environment: Mapping[str, str], port: int) -> HTTPConnection:
    # A connection to 0.0.0.0 or :: reaches this machine.
    host = (environment.get("SERVING_HOST") or "127.0.0.1").strip("[]")
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    if path := environment.get("SERVING_UDS"):
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(_TIMEOUT_SECONDS)
        opened.connect(path)
    else:
        opened = socket.create_connection((host, port), _TIMEOUT_SECONDS)
    if environment.get("SERVING_TLS_CERT"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        opened = context.wrap_socket(opened)
    connection.sock = opened
    return connection


if __name__ == "__main__":
    sys.exit(not is_alive(os.environ))
