"""A service with the oldest supported MLflow server: promotions work, and missing webhooks are reported."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mlflow_releases
from tests.support.mlflow_server import mlflow_server
from tests.support.promotions import Model, ServedRegistry
from tests.support.registry import Registry, save_scripted_model
from tests.support.service import PROGRAM, Service, environment, served

RELEASE = "2.9.2"
SECRET = {"webhook_secret": "a secret of both"}
MESSAGE = (
    "this registry has no webhooks, which need an MLflow server of version 3.3 or later. Upgrade the server, "
    "or unset SERVING_WEBHOOK_SECRET. Without webhooks, the service detects changes by polling "
    "(SERVING_POLL_SECONDS)"
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Start an MLflow server of an old release in its own environment, with one promoted version."""
    folder = tmp_path_factory.mktemp("old-server")
    packages = (f"mlflow=={RELEASE}", "setuptools<81", "sqlalchemy<2.1")
    program = mlflow_releases.environment(folder, *packages, *mlflow_releases.PACKAGES[RELEASE])
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}", program=program) as url:
        registry = ServedRegistry(url, folder)
        registry.promote("actor", registry.register("actor", save_scripted_model(folder / "first")))
        yield registry


@pytest.fixture(scope="module")
def service(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("with-old-server")
    with served(registry.uri, folder, models="models:/actor/Production", **SECRET) as running:
        running.until_ready()
        yield running


def test_promotion_on_old_server_goes_live(service: Service, registry: Registry, tmp_path: Path) -> None:
    model = Model("actor", service, registry)
    promoted = registry.register("actor", save_scripted_model(tmp_path, factor=2.0))
    model.promote(promoted)
    model.until_live(promoted)
    assert model.until_tagged(promoted, "live")


def test_service_warns_of_missing_webhooks(service: Service) -> None:
    warning = service.wait_for_log(logger="serving.webhooks", level="warning")
    assert warning["event"] == f"SERVING_WEBHOOK_SECRET has no effect: {MESSAGE}"


def test_webhook_command_explains_missing_webhooks(registry: Registry, tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "webhook", "https://serving.example"],
        env=environment(registry.uri, tmp_path, **SECRET),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert " ".join(done.stderr.split()).endswith(f"cannot register the webhook: {MESSAGE}")
