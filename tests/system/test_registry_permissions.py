"""A service whose account may read an MLflow server with basic authentication, but not edit every model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests

from tests.support.mlflow_server import mlflow_server
from tests.support.registry import NewRegistry, quiet, save_scripted_model
from tests.support.service import Service, served, until

ADMIN = ("admin", "a-long-admin-password")
READER = ("reader", "a-long-reader-password")
NAMES = ("actor", "other")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, new_registry: NewRegistry) -> Iterator[str]:
    """Run an MLflow server with basic authentication that has two models and an account that may read."""
    folder = tmp_path_factory.mktemp("basic-auth")
    config = folder / "basic_auth.ini"
    config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n")
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key",
    }
    with mlflow_server(folder, new_registry(folder), "--app-name", "basic-auth", **variables) as url:
        call(url, "users/create", username=READER[0], password=READER[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
            patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
            client = mlflow.MlflowClient(url, url)
            experiment = client.create_experiment("actors")
            for name in NAMES:
                run = client.create_run(experiment)
                client.log_artifacts(run.info.run_id, str(save_scripted_model(folder)), "model")
                client.create_registered_model(name)
                client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
                with quiet():
                    client.set_registered_model_alias(name, "champion", "1")
        yield url


def call(url: str, path: str, *, version: str = "2.0", **body: str) -> None:
    response = requests.post(f"{url}/api/{version}/mlflow/{path}", json=body, auth=ADMIN, timeout=60)
    assert response.ok, response.text


def allow_editing(url: str, model: str) -> None:
    """Give the reader the permission to edit a model."""
    body = {"username": READER[0], "resource_type": "registered_model", "resource_id": model}
    call(url, "users/permissions/grant", version="3.0", permission="EDIT", **body)


def tags(url: str, name: str) -> dict[str, str]:
    response = requests.get(
        f"{url}/api/2.0/mlflow/model-versions/get",
        params={"name": name, "version": "1"},
        auth=ADMIN,
        timeout=60,
    )
    found: list[dict[str, str]] = response.json()["model_version"].get("tags", [])
    return {tag["key"]: tag["value"] for tag in found}


def warnings(service: Service, name: str) -> list[str]:
    """Return the warnings in `/ready` that tags of a model cannot be written."""
    models: list[dict[str, Any]] = service.ready()["models"]
    (model,) = (model for model in models if model["name"] == name)
    return [text for text in model["warnings"] if "cannot be written" in text]


@pytest.mark.timeout(300)
def test_read_only_account_is_a_warning_until_it_may_edit(server: str, tmp_path: Path) -> None:
    references = ",".join(f"models:/{name}@champion" for name in NAMES)
    account = {"_mlflow_tracking_username": READER[0], "_mlflow_tracking_password": READER[1]}
    account["_mlflow_http_request_timeout"] = "30"  # a check of a password takes seconds on a busy machine
    with served(server, tmp_path, models=references, **account) as service:
        service.until_ready()
        until(lambda: warnings(service, "actor") and warnings(service, "other"))
        (warning,) = warnings(service, "actor")
        assert "Permission denied" in warning
        assert "Give this service's account the permission to edit the registered model" in warning
        metric = 'serving_model_tags_writable{{model="{0}",uri="models:/{0}@champion"}}'
        assert service.metrics()[metric.format("actor")] == 0
        shown = service.client.get("/status").json()["models"][0]["warnings"]
        assert shown.count(warning) == 1

        # A model that the account may edit gets its tags, although the first one is still read-only.
        allow_editing(server, "other")
        until(lambda: not warnings(service, "other"))
        assert tags(server, "other")["serving.state"] == "live"
        assert warnings(service, "actor") == [warning]

        allow_editing(server, "actor")
        until(lambda: not warnings(service, "actor"))
        assert tags(server, "actor")["serving.state"] == "live"
        assert service.metrics()[metric.format("actor")] == 1
        logged = [line["event"] for line in service.lines() if "could not be written" in line["event"]]
        assert len(logged) == len(NAMES)
