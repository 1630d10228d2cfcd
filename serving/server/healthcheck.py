"""Health check of the container image.

`python -m serving.server.healthcheck` reads the environment variables of the service; it cannot see its
flags. The exit status is 0 if the service is alive. It imports only the standard library, because it runs
several times per minute and imports take time.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection

_TIMEOUT_SECONDS = 2.0


def is_alive(environment: Mapping[str, str]) -> bool:
    """Check whether a service with these settings responds on this machine; do not verify its certificate."""
    # A connection to 0.0.0.0 or :: reaches this machine.
    host = environment.get("SERVING_HOST") or "127.0.0.1"
    port = environment.get("SERVING_PORT", "")
    number = int(port) if port.isdecimal() else 8000  # tcp://… is not a setting: Kubernetes has set it
    if environment.get("SERVING_TLS_CERT"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection(host, number, timeout=_TIMEOUT_SECONDS, context=context)
    else:
        connection = HTTPConnection(host, number, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_alive(os.environ))
