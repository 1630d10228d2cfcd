"""MLflow's registry webhooks: a signed hint to read the registry now."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cachetools import TTLCache
from fastapi import APIRouter, Request
from pydantic import BaseModel

from serving.auth.access_rules import SIGNED, requires
from serving.errors import RegistryDenied, RegistryError, Unauthenticated, WebhooksUnsupported
from serving.http.http_context import context_of
from serving.http.problem_details import documented
from serving.http.request_body import read_json

log = logging.getLogger("serving.webhooks")
_RETRY_SECONDS = 10.0
_MAX_BYTES = 2**20
_MAX_AGE_SECONDS = 300
_MAX_DELIVERIES = 10_000
# A signature is valid from five minutes before its time to five minutes after it.
_REPLAY_SECONDS = 2 * _MAX_AGE_SECONDS + 1


class WebhookAccepted(BaseModel):
    """The response to a genuine webhook."""

    status: str = "ok"


class DeliveryVerifier:
    """Accepts genuine deliveries once, and rejects forged, old and repeated ones.

    Args:
        secret: the secret that MLflow signs webhooks with.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret.encode(), clock
        self._seen: TTLCache[str, None] = TTLCache(_MAX_DELIVERIES, _REPLAY_SECONDS, clock)

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Accept a delivery.

        Raises:
            Unauthenticated: it is not signed with the secret, its signature is not from the last five
                minutes, or it was delivered before.
        """
        delivery = headers.get("x-mlflow-delivery-id", "")
        timestamp = headers.get("x-mlflow-timestamp", "")
        signed = f"{delivery}.{timestamp}.".encode() + body
        expected = base64.b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).decode()
        signature = headers.get("x-mlflow-signature", "")
        if not hmac.compare_digest(f"v1,{expected}".encode(), signature.encode()):
            raise Unauthenticated("The webhook is not signed with the secret that is set here.")
        if not timestamp.isdecimal() or abs(self._clock() - int(timestamp)) > _MAX_AGE_SECONDS:
            raise Unauthenticated("The webhook is too old.")
        if delivery in self._seen:
            raise Unauthenticated("The webhook was delivered before.")
        self._seen[delivery] = None


async def warn_if_unsupported(check: Callable[[], Awaitable[None]]) -> None:
    """Log a warning if the registry has no webhooks, as soon as it responds.

    `check` raises WebhooksUnsupported then.
    """
    while True:
        try:
            await check()
        except WebhooksUnsupported as error:
            log.warning("SERVING_WEBHOOK_SECRET has no effect: %s", error)
        except RegistryDenied:  # only administrators may list webhooks, so nothing is known
            log.debug("the registry does not let this service list webhooks")
        except RegistryError:
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        return


def router(secret: str, wake: Sequence[Callable[[], None]]) -> APIRouter:
    """Return the route for webhooks that are signed with `secret`; a genuine one calls all of `wake`."""
    routes = APIRouter(tags=["operations"])
    deliveries = DeliveryVerifier(secret)

    @routes.post(
        "/webhooks/mlflow",
        summary="Read the registry now, on a signed MLflow registry webhook",
        responses=documented(401, 413, 415),
    )
    @requires(SIGNED)
    async def receive_webhook(request: Request) -> WebhookAccepted:
        body = await read_json(context_of(request.scope), _MAX_BYTES)
        deliveries.check(request.headers, body)
        for follower in wake:
            follower()
        return WebhookAccepted()

    return routes
