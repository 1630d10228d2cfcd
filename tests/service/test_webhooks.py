"""MLflow's webhooks: genuine deliveries trigger an immediate registry poll, others are rejected."""

from __future__ import annotations

import hmac
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from serving.app import create_app
from serving.errors import Unauthenticated
from serving.http.endpoints.webhooks import DeliveryVerifier
from serving.settings.settings import Settings
from tests.support.promotions import Callers, Model, Tracking
from tests.support.service import Service, environment, served

SECRET = "a secret of both"
NOW = 1_800_000_000
BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"name": "iris"}}'


def headers(
    body: bytes = BODY, *, secret: str = SECRET, delivery: str = "one", at: float | str = NOW
) -> dict[str, str]:
    """Return the headers that MLflow sends with a body."""
    moment = at if isinstance(at, str) else str(int(at))
    return {
        "x-mlflow-delivery-id": delivery,
        "x-mlflow-timestamp": moment,
        "x-mlflow-signature": _generate_hmac_signature(secret, delivery, moment, body.decode()),
    }


def deliveries(now: float = NOW) -> DeliveryVerifier:
    return DeliveryVerifier(SECRET, lambda: now)


# -- signatures


@pytest.mark.parametrize("age", [0, 299, -299], ids=lambda age: f"{age} s old")
def test_recent_mlflow_signature_is_accepted(age: int) -> None:
    deliveries(NOW + age).check(headers(), BODY)


@pytest.mark.parametrize("age", [301, -301, 86_400], ids=lambda age: f"{age} s old")
def test_signature_outside_time_window_is_rejected(age: int) -> None:
    with pytest.raises(Unauthenticated, match="too old"):
        deliveries(NOW + age).check(headers(), BODY)


FORGERIES: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "no headers": lambda _: {},
    "no signature": lambda good: good | {"x-mlflow-signature": ""},
    "no version": lambda good: good | {"x-mlflow-signature": good["x-mlflow-signature"].removeprefix("v1,")},
    "another version": lambda good: (
        good | {"x-mlflow-signature": good["x-mlflow-signature"].replace("v1", "v2")}
    ),
    "cut off": lambda good: good | {"x-mlflow-signature": good["x-mlflow-signature"][:-1]},
    "another letter": lambda good: good | {"x-mlflow-signature": good["x-mlflow-signature"].swapcase()},
    "no ASCII": lambda good: good | {"x-mlflow-signature": "v1,²é"},
    "another delivery": lambda good: good | {"x-mlflow-delivery-id": "two"},
    "another moment": lambda good: good | {"x-mlflow-timestamp": str(NOW + 1)},
    "another secret": lambda _: headers(secret="a guess"),
    "an empty secret": lambda _: headers(secret=""),
    "another body": lambda _: headers(BODY + b" "),
    "the parts shifted": lambda good: (
        good | {"x-mlflow-delivery-id": f"one.{NOW}", "x-mlflow-timestamp": BODY.decode()[:10]}
    ),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_forgery_is_rejected_in_constant_time(
    forge: Callable[[dict[str, str]], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = hmac.compare_digest
    compared: list[tuple[Any, ...]] = []

    def recorded(*two: Any) -> bool:
        compared.append(two)
        return compare(*two)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    with pytest.raises(Unauthenticated, match="not signed with the secret"):
        deliveries().check(forge(headers()), BODY)
    assert len(compared) == 1


@pytest.mark.parametrize("moment", ["", "soon", "1.8e9", "-1", "²", "9" * 30])
def test_invalid_timestamp_is_rejected(moment: str) -> None:
    with pytest.raises(Unauthenticated, match="too old"):
        deliveries().check(headers(at=moment), BODY)


def test_repeated_delivery_is_rejected() -> None:
    verifier = deliveries()
    verifier.check(headers(), BODY)
    with pytest.raises(Unauthenticated, match="delivered before"):
        verifier.check(headers(), BODY)
    verifier.check(headers(delivery="two"), BODY)


def test_forgery_does_not_consume_the_delivery_id() -> None:
    verifier = deliveries()
    with pytest.raises(Unauthenticated):
        verifier.check(headers(secret="a guess"), BODY)
    verifier.check(headers(), BODY)


# -- the route


def calls(**settings: Any) -> httpx.AsyncClient:
    """Return a client of an application that is not started and follows no model."""
    app = create_app(Settings(**settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front")


@pytest.mark.anyio
async def test_route_requires_a_secret(tmp_path: Path) -> None:
    async with calls(store_dir=tmp_path) as client:
        assert (await client.post("/webhooks/mlflow", content=BODY, headers=headers())).status_code == 404
        assert "/webhooks/mlflow" not in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.anyio
async def test_route_accepts_genuine_delivery_once_and_rejects_forgery(tmp_path: Path) -> None:
    async with calls(store_dir=tmp_path, webhook_secret=SECRET) as client:

        async def post(sent: dict[str, str]) -> httpx.Response:
            json = {"content-type": "application/json"}
            return await client.post("/webhooks/mlflow", content=BODY, headers=sent | json)

        genuine = headers(at=time.time())
        assert (await post(genuine)).json() == {"status": "ok"}
        for refused in (await post(genuine), await post(headers(secret="a guess", at=time.time()))):
            assert refused.status_code == 401
            assert refused.headers["content-type"] == "application/problem+json"
            assert SECRET not in refused.text
        assert "/webhooks/mlflow" in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.anyio
async def test_endless_body_is_rejected_early(tmp_path: Path) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 2**30:
            read += 2**20
            yield b" " * 2**20

    async with calls(store_dir=tmp_path, webhook_secret=SECRET) as client:
        json = {"content-type": "application/json"}
        refused = await client.post("/webhooks/mlflow", content=endless(), headers=json)
    assert refused.status_code == 413
    assert read < 2**24


# -- a service that relies on webhooks alone


@pytest.fixture(scope="module")
def service(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    registry = tracking.registry
    registry.promote("hinted", registry.add("hinted"))
    registry.alias("hooked", "champion", registry.add("hooked"))
    models = "models:/hinted/Production,models:/hooked@champion"
    settings = {"models": models, "poll_seconds": 3600, "webhook_secret": SECRET}
    with served(tracking.url, tmp_path_factory.mktemp("hooked"), **settings) as service:
        service.until_ready()
        yield service


def test_webhook_triggers_poll_and_failing_version_is_reverted(service: Service, tracking: Tracking) -> None:
    model = Model("hinted", service, tracking.registry)
    bad = model.promote(on_large="kill")
    json = {"content-type": "application/json"}
    hint = service.client.post("/webhooks/mlflow", content=BODY, headers=headers(at=time.time()) | json)
    assert hint.json() == {"status": "ok"}
    model.until_live(bad)
    for _ in range(2):
        assert model.predict(101.0).status_code == 503
    assert "its process died" in model.until_refused(bad, "reverted")
    assert model.is_well("1")
    assert model.until_tagged(bad, "reverted")
    assert model.until_tagged("1", "live")


def test_webhook_reports_alias_and_tag_changes(service: Service, tracking: Tracking, tmp_path: Path) -> None:
    registry, model = tracking.registry, Model("hooked", service, tracking.registry, "@champion")
    command = [sys.executable, "-m", "serving", "webhook", service.url, "--name", "hooked"]
    result = subprocess.run(command, env=service.env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"MLflow sends changes to {service.url}/webhooks/mlflow" in result.stdout
    (webhook,) = [each for each in registry.client.list_webhooks() if each.name == "hooked"]
    try:
        with Callers(model) as callers:
            for _ in range(3):
                version = model.add()
                registry.alias("hooked", "champion", version)
                model.until_live(version)
                callers.until_answered_by(version)
        assert callers.faults == []
        assert callers.versions == [1, 2, 3, 4]
        breaking = model.add(inputs="x: double", example=pd.DataFrame({"x": [1.0]}))
        registry.alias("hooked", "champion", breaking)
        model.until_refused(breaking)
        registry.client.set_model_version_tag("hooked", breaking, "serving.allow_breaking", "true")
        model.until_live(breaking)
        assert model.is_well(breaking)
    finally:
        registry.client.delete_webhook(webhook.webhook_id)


def test_webhook_registration_requires_a_secret(tracking: Tracking, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving", "webhook", "http://127.0.0.1:9", "--name", "unsigned"]
    env = environment(tracking.url, tmp_path)
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "✗ SERVING_WEBHOOK_SECRET: set it to the same value here and for the service"
    )
    assert "unsigned" not in [each.name for each in tracking.registry.client.list_webhooks()]
