"""The configuration that both clients share."""

from __future__ import annotations

import os
import ssl
from typing import Any

import httpx

DEADLINE_SECONDS = 30.0
MAX_CONNECTIONS = 100
API_KEY_VARIABLE = "MLFLOW_SERVING_API_KEY"


def configuration(
    url: str, api_key: str | None, verify: ssl.SSLContext | bool, max_connections: int
) -> dict[str, Any]:
    """Return the arguments of an httpx client.

    Raises:
        ValueError: The URL does not begin with `http://` or `https://`.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"The URL of the service should begin with http:// or https://, unlike {url!r}.")
    key = (api_key or os.environ.get(API_KEY_VARIABLE, "")).strip()
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "verify": verify,
        "limits": httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
    }
