"""MLflow's registry webhooks: a signed hint to look at the registry now."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from fastapi import APIRouter, Request
from pydantic import BaseModel

from serving.auth.access_rules import SIGNED, requires
from serving.errors import Unauthenticated
from serving.http.http_context import context_of
from serving.http.problem_details import documented
from serving.http.request_body import read_json

_MAX_BYTES = 2**20
_MAX_AGE_SECONDS = 300
_MAX_REMEMBERED = 10_000


class WebhookAccepted(BaseModel):
    """The hint was taken."""

    status: str = "ok"


class DeliveryVerifier:
    """Tells genuine deliveries from forged, old and repeated ones."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret.encode(), clock
        self._seen: OrderedDict[str, None] = OrderedDict()

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Take a delivery, once.

        Raises:
            Unauthenticated: it isn't signed with the secret, is older than five minutes, or came before.
        """
        delivery = headers.get("x-mlflow-delivery-id", "")
        timestamp = headers.get("x-mlflow-timestamp", "")
        signed = f"{delivery}.{timestamp}.".encode() + body
        expected = base64.b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).decode()
        given = headers.get("x-mlflow-signature", "")
        if not hmac.compare_digest(f"v1,{expected}".encode(), given.encode()):
            raise Unauthenticated("The webhook is not signed with the secret that is set here.")
        if not timestamp.isdecimal() or abs(self._clock() - int(timestamp)) > _MAX_AGE_SECONDS:
            raise Unauthenticated("The webhook is too old.")
        if delivery in self._seen:
            raise Unauthenticated("The webhook was delivered before.")
        self._seen[delivery] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)


def router(secret: str, wake: Sequence[Callable[[], None]]) -> APIRouter:
    """The route for webhooks that are signed with `secret`; each of `wake` is called for a genuine one."""
    routes = APIRouter(tags=["operations"])
    deliveries = DeliveryVerifier(secret)

    @routes.post(
        "/webhooks/mlflow",
        summary="A signed MLflow registry webhook: look at the registry now",
        responses=documented(401, 413, 415),
    )
    @requires(SIGNED)
    async def hear(request: Request) -> WebhookAccepted:
        body = await read_json(context_of(request.scope), _MAX_BYTES)
        deliveries.check(request.headers, body)
        for follower in wake:
            follower()
        return WebhookAccepted()

    return routes
