"""Creates webhooks in MLflow, and detects registries that have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.errors import WebhooksUnsupported
from serving.registry.mlflow_errors import map_exceptions

_EVENTS = (
    "model_version.created",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version_alias.created",
    "model_version_alias.deleted",
)
_NOT_FOUND = ("ENDPOINT_NOT_FOUND", "NOT_FOUND", "NOT_IMPLEMENTED")
# A colon after the name of the secret would make the log redact the next word.
_UNSUPPORTED = (
    "this registry has no webhooks, which need an MLflow server of version 3.3 or later. Upgrade the server, "
    "or unset SERVING_WEBHOOK_SECRET. Without webhooks, the service detects changes by polling "
    "(SERVING_POLL_SECONDS)"
)


def create(client: Any, name: str, url: str, secret: str) -> str:
    """Create a webhook that sends events on versions and aliases to `url`; return its id.

    Raises:
        WebhooksUnsupported: the registry has no webhooks.
        RegistryUnavailable: the registry did not accept it.
    """
    with _map_exceptions():
        return str(client.create_webhook(name, url, [*_EVENTS], secret=secret).webhook_id)


def check(client: Any) -> None:
    """Check that the registry has webhooks; raises WebhooksUnsupported if not."""
    with _map_exceptions():
        client.list_webhooks(max_results=1)


@contextmanager
def _map_exceptions() -> Iterator[None]:
    with map_exceptions("the webhook"):
        try:
            yield
        except Exception as error:
            # Unity Catalog and old clients have no such method, and old servers have no such endpoint.
            is_missing = isinstance(error, (NotImplementedError, AttributeError))
            if is_missing or getattr(error, "error_code", None) in _NOT_FOUND:
                raise WebhooksUnsupported(_UNSUPPORTED) from error
            raise
