"""Links to the MLflow UI: base addresses without credentials, and the pages of a version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from serving.http.mlflow_links import MlflowLinks, MlflowUi, base_url
from serving.settings.settings import Settings
from serving.version import Version

MODEL = "m-0123456789abcdef0123456789abcdef"
VERSION = Version(
    name="ab/c",
    version="3",
    location=f"mlflow-artifacts:/7/models/{MODEL}/artifacts",
    source=f"models:/{MODEL}",
    run_id="abc",
    model_id=MODEL,
)


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("http://mlflow:5000/", "http://mlflow:5000"),
        ("https://mlflow.example.org/team/mlflow", "https://mlflow.example.org/team/mlflow"),
        ("https://user:secret@mlflow:5000", "https://mlflow:5000"),
        ("https://user:sec/ret@mlflow:5000/ui", "https://mlflow:5000/ui"),
        ("https://mlflow:5000/?token=secret#part", "https://mlflow:5000"),
        ("sqlite:///mlruns/mlflow.db", None),
        ("databricks", None),
        ("file:///mlruns", None),
        ("http://", None),
    ],
)
def test_base_url_has_no_credentials(uri: str, base: str | None) -> None:
    assert base_url(uri) == base


@pytest.mark.parametrize(
    ("settings", "registry", "tracking"),
    [
        ({"tracking_uri": "http://one"}, "http://one", "http://one"),
        ({"tracking_uri": "http://one", "registry_uri": "http://two"}, "http://two", "http://one"),
        ({"tracking_uri": "sqlite:///a"}, None, None),
        ({"tracking_uri": "sqlite:///a", "mlflow_ui_url": "http://ui/"}, "http://ui", "http://ui"),
        ({"tracking_uri": "http://one", "mlflow_ui_url": "https://ui"}, "https://ui", "https://ui"),
    ],
)
def test_ui_defaults_to_the_mlflow_server(settings: Any, registry: str, tracking: str) -> None:
    assert MlflowUi.of(Settings(**settings)) == MlflowUi(registry, tracking)


@pytest.mark.parametrize(
    "url", ["mlflow", "ftp://mlflow", "http://user:secret@mlflow", "javascript:alert(1)"]
)
def test_invalid_addresses_are_rejected(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings(mlflow_ui_url=url)


def test_links_name_the_pages_of_version_run_and_logged_model() -> None:
    assert MlflowUi("http://two", "http://one").links(VERSION) == MlflowLinks(
        version="http://two/#/models/ab%2Fc/versions/3",
        run="http://one/#/runs/abc",
        logged_model=f"http://one/#/experiments/7/models/{MODEL}",
    )


def test_links_open_the_workspace_of_the_service() -> None:
    ui = MlflowUi.of(Settings(tracking_uri="http://one", workspace="team a"))
    assert ui.links(VERSION) == MlflowLinks(
        version="http://one/#/models/ab%2Fc/versions/3?workspace=team%20a",
        run="http://one/#/runs/abc?workspace=team%20a",
        logged_model=f"http://one/#/experiments/7/models/{MODEL}?workspace=team%20a",
    )


@pytest.mark.parametrize(
    "location",
    [f"file:///mlruns/iris/models/{MODEL}/artifacts", "mlflow-artifacts:/7/models/m-other/artifacts"],
)
def test_logged_model_has_no_link_with_another_location(location: str) -> None:
    links = MlflowUi("http://one", "http://one").links(replace(VERSION, location=location))
    assert links.logged_model is None
    assert links.run


def test_unknown_pages_have_no_links() -> None:
    assert MlflowUi(None, None).links(VERSION) == MlflowLinks()
    assert (
        MlflowUi("http://one", "http://one").links(replace(VERSION, version=None, run_id=None, location=""))
        == MlflowLinks()
    )
