"""Entry points of `mlflow run`, in the environment of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.exceptions import ExecutionException

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())

pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run entry points with the `python` of the tests."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run(entry_point: str, **parameters: str) -> None:
    """Call the function behind `mlflow run`, without the seconds that its import takes."""
    mlflow.projects.run(str(ROOT), entry_point, parameters=parameters, env_manager="local")


def runs() -> list[Any]:
    client = mlflow.MlflowClient()
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(everywhere, order_by=["start_time"]))


def test_training_continues_the_run_of_the_project() -> None:
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    done = subprocess.run([*command, "-P", "regularization=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (only,) = runs()
    assert only.info.status == "FINISHED"
    # The text of the parameter; training alone would log 2.0.
    assert only.data.params["regularization"] == "2"
    assert only.data.params["model"] == "iris"
    assert only.data.metrics["accuracy"] > 0.9
    (version,) = mlflow.MlflowClient().search_model_versions("name='iris'")
    assert version.run_id == only.info.run_id
    assert "promote --version 1" in done.stdout


@pytest.fixture
def version(registry: str) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("iris")
    client.create_model_version("iris", "nowhere")


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("parameters", "stage", "aliases"),
    [({}, "Production", {}), ({"alias": "champion"}, "None", {"champion": 1})],
)
def test_promote_leaves_a_finished_run(
    parameters: dict[str, str], stage: str, aliases: dict[str, int]
) -> None:
    run("promote", version="1", **parameters)
    assert [entry.info.status for entry in runs()] == ["FINISHED"]
    (version,) = mlflow.MlflowClient().search_model_versions("name='iris'")
    assert version.current_stage == stage
    found = mlflow.MlflowClient().get_registered_model("iris").aliases
    assert {alias: int(number) for alias, number in found.items()} == aliases


def test_promote_of_a_missing_version_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExecutionException):
        run("promote", version="1")
    assert "python -m training: Registered Model with name=iris not found" in capfd.readouterr().err
    assert [entry.info.status for entry in runs()] == ["FAILED"]


def test_serve_passes_its_parameters_to_the_front(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExecutionException):
        run("serve", models="nonsense")
    assert "SERVING_MODELS: 'nonsense' is not a model reference" in capfd.readouterr().err


def test_train_is_the_main_entry_point() -> None:
    assert PROJECT["entry_points"]["main"] == PROJECT["entry_points"]["train"]


def test_environment_equals_that_of_the_scripts() -> None:
    *_, pip = yaml.safe_load((ROOT / PROJECT["conda_env"]).read_text())["dependencies"]
    assert pip == {"pip": ["-r constraints.txt"]}
