"""Services of two workspaces of one MLflow server that share a model name and the folder of their state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from serving.registry.artifact_store import ArtifactStore
from serving.registry.registry_identity import registry_identity
from serving.settings.settings import Settings
from tests.support.mlflow_server import mlflow_server
from tests.support.registry import NewRegistry, save_scripted_model
from tests.support.service import served, until

WORKSPACES = {"team-a": 2, "team-b": 3}
"""The workspaces, and the factor by which the model of each multiplies."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, new_registry: NewRegistry) -> Iterator[str]:
    """Run an MLflow server whose workspaces have a model of the same name, version and source."""
    folder = tmp_path_factory.mktemp("workspaces")
    with mlflow_server(folder, new_registry(folder), "--enable-workspaces") as url:
        client = mlflow.MlflowClient(url, url)
        for workspace, factor in WORKSPACES.items():
            client.create_workspace(workspace)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_WORKSPACE", workspace)
                client = mlflow.MlflowClient(url, url)
                run = client.create_run(client.create_experiment("actors"))
                client.log_artifacts(
                    run.info.run_id, str(save_scripted_model(folder, factor=factor)), "model"
                )
                client.create_registered_model("actor")
                client.create_model_version("actor", f"{run.info.artifact_uri}/model", run.info.run_id)
                client.set_registered_model_alias("actor", "champion", "1")
        yield url


def state_tag(server: str) -> str | None:
    version = mlflow.MlflowClient(server, server).get_model_version("actor", "1")
    state: str | None = version.tags.get("serving.state")
    return state


@pytest.mark.timeout(300)
def test_workspaces_with_the_same_model_name_never_mix(server: str, tmp_path: Path) -> None:
    for workspace, factor in WORKSPACES.items():
        variables = {"_mlflow_workspace": workspace}
        with served(server, tmp_path, models="models:/actor@champion", **variables) as service:
            service.until_ready()
            assert service.client.post("/predict", json={"x": 1.0}).json()["prediction"] == factor
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_WORKSPACE", workspace)
                until(lambda: state_tag(server) == "live")
            history = service.client.get("/status", params={"model": "actor"}).json()["models"][0]["history"]
            # The history of the other workspace, which wrote to the same folder before, is not here.
            assert [entry["state"] for entry in history] == ["live"]
    # Each service keeps its last version, from which it starts while the registry is away.
    assert len([*(tmp_path / "store").glob("*/live/*.json")]) == len(WORKSPACES)
    assert len([*(tmp_path / "store").glob("*/history/*.jsonl")]) == len(WORKSPACES)


def store(
    folder: Path, tracking_uri: str, workspace: str | None = None, registry_uri: str | None = None
) -> Path:
    """Return the folder of attempts of the store for these settings."""
    settings = Settings(tracking_uri=tracking_uri, workspace=workspace, registry_uri=registry_uri)
    return ArtifactStore(folder, registry_identity(settings)).attempts


def test_store_is_separate_for_registry_tracking_server_and_workspace(tmp_path: Path) -> None:
    """A deployment without workspaces keeps the folder that it had."""
    plain = store(tmp_path, "http://mlflow")
    assert plain == ArtifactStore(tmp_path, "http://mlflow").attempts
    assert plain == store(tmp_path, "http://mlflow", registry_uri="http://mlflow")
    others = [
        store(tmp_path, "http://mlflow", "team-a"),
        store(tmp_path, "http://mlflow", registry_uri="http://registry"),
        store(tmp_path, "http://tracking", registry_uri="http://registry"),
        store(tmp_path, "http://tracking", "team-a", "http://registry"),
    ]
    assert len({plain, *others}) == 1 + len(others)


def test_store_is_separate_for_databricks_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()
    for host in ("https://one", "https://two"):
        monkeypatch.setenv("DATABRICKS_HOST", host)
        settings = Settings(models="models:/a.b.c/1", tracking_uri="databricks")
        folders.add(ArtifactStore(tmp_path, registry_identity(settings)).attempts)
    assert len(folders) == 2
