"""Check whether the service of this environment is alive, for the image's health check.

`python -m serving.server.healthcheck` reads the variables that the service itself reads; it cannot see flags.
The exit status is 0 if the service is alive. It uses the standard library alone: it runs several times a
minute, and each import costs time.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection

_SECONDS = 2.0


def is_alive(environment: Mapping[str, str]) -> bool:
    """Whether a service with these settings answers on this machine; its certificate is not looked at."""
    # Who listens on all addresses is reached by the name of all of them.
    host = environment.get("SERVING_HOST") or "127.0.0.1"
    port = int(environment.get("SERVING_PORT") or 8000)
    if environment.get("SERVING_TLS_CERT"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection(host, port, timeout=_SECONDS, context=context)
    else:
        connection = HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_alive(os.environ))
