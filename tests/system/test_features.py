"""The service without one of its features: it starts and predicts after the feature's folder is deleted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import serving
from serving.app import FEATURES
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, environment

PACKAGE = Path(serving.__file__).parent


@pytest.fixture(scope="module")
def registry_uri(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a registry with one model in production."""
    folder = tmp_path_factory.mktemp("features")
    uri = new_registry(folder)
    registry = Registry(uri)
    registry.promote("actor", registry.register("actor", save_scripted_model(folder, factor=1.0)))
    return uri


@pytest.fixture
def service_without(request: pytest.FixtureRequest, registry_uri: str, tmp_path: Path) -> Iterator[Service]:
    """Start a copy of the package from which a feature's folder and its line in `app.py` are deleted."""
    folder: str = request.param
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", folder))
    app = copy / "app.py"
    lines = app.read_text().splitlines(keepends=True)
    app.write_text("".join(line for line in lines if line.strip() != f'"{folder}",'))
    env = environment(registry_uri, tmp_path, models="models:/actor/Production")
    service = Service(env, tmp_path, [sys.executable, "-m", "serving"])
    try:
        yield service
        assert service.stop() == 0
    finally:
        service.process.kill()


@pytest.mark.parametrize("service_without", [*FEATURES, "integrations"], indirect=True)
def test_service_predicts_without_feature(service_without: Service) -> None:
    service_without.until_ready()
    response = service_without.client.post("/predict", json={"x": 2.0})
    assert response.json()["prediction"] == 2.0
    assert service_without.client.get("/metrics").is_success
