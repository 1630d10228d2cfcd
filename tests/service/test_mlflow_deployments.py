"""MLflow's deployments interface to a service, through MLflow's own entry point, client and command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse, get_deploy_client, run_local
from mlflow.deployments.cli import commands
from mlflow.deployments.interface import _target_help
from mlflow.exceptions import MlflowException

from tests.support.faulty_proxy import free_port
from tests.support.registry import NewRegistry, Registry, quiet, save_scripted_model
from tests.support.sample_models import HOUSES, IRIS, sample_models
from tests.support.service import FOR_SKLEARN, SELDOM, Service, environment, served, until

NAMES = ("classifier", "pipeline", "arrays", "nested")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    with quiet():
        for name in NAMES:
            sample_models()[name].save(home / name)
    return {name: home / name for name in NAMES} | {"speaker": save_scripted_model(home, streams=True)}


@pytest.fixture(scope="module")
def service(
    folders: dict[str, Path], new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("deployments")
    registry = Registry(new_registry(home))
    for name, folder in folders.items():
        registry.alias(name, "champion", registry.register(name, folder))
    models = ",".join(f"models:/{name}@champion" for name in folders)
    with served(registry.uri, home, models=models, poll_seconds=SELDOM, preload=FOR_SKLEARN) as service:
        service.until_ready()
        yield service


@pytest.fixture(scope="module")
def target(service: Service) -> str:
    return f"serving:{service.url}"


@pytest.fixture(scope="module")
def client(target: str) -> BaseDeploymentClient:
    return get_deploy_client(target)


def run(*words: str) -> str:
    """Run `mlflow deployments` as a user does, and return its output."""
    command = [sys.executable, "-m", "mlflow", "deployments", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=100, check=True).stdout


def run_here(*words: str) -> Result:
    """Run `mlflow deployments` in this process, which is faster."""
    return CliRunner().invoke(commands, words)


def test_plugin_is_installed() -> None:
    assert "serving" in entry_points(group="mlflow.deployments").names


# -- command line


def test_command_predict_prints_the_predictions(target: str, tmp_path: Path) -> None:
    rows, result = str(tmp_path / "input.json"), tmp_path / "output.json"
    IRIS[:2].to_json(rows, orient="records")

    printed = json.loads(run("predict", "-t", target, "--name", "classifier", "-I", rows))
    written = run_here("predict", "-t", target, "--endpoint", "classifier", "-I", rows, "-O", str(result))

    assert np.argmax(printed["predictions"], axis=1).tolist() == [0, 0]
    assert json.loads(result.read_text()) == printed, written.output


def test_commands_list_and_get_describe_deployments(target: str) -> None:
    listed = run_here("list", "-t", target).output
    described = run_here("get", "-t", target, "--name", "classifier").output

    assert all(f"'name': '{name}'" in listed for name in NAMES)
    assert "uri: models:/classifier@champion" in described
    assert "sepal_length" in described


def test_command_create_names_the_registry(target: str) -> None:
    done = run_here("create", "-t", target, "--name", "classifier", "-m", "models:/classifier/2")
    assert "set_registered_model_alias" in str(done.exception)


# -- client


def test_predict_equals_the_model_itself(client: BaseDeploymentClient, folders: dict[str, Path]) -> None:
    frame = IRIS.sample(10_000, replace=True, random_state=1, ignore_index=True)

    response = client.predict("classifier", frame)

    expected = mlflow.pyfunc.load_model(str(folders["classifier"])).predict(frame)
    assert isinstance(response, PredictionsResponse)
    assert np.array_equal(response.get_predictions("ndarray"), expected)


IMAGES = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
WORDS = np.array([["a", "b"], ["c", "d"]])
DIFFERENT = [{"v": [1.0], "o": {"a": 1.0}, "m": {"k": 1}}, {"v": [2.0], "o": {"a": 2.5}, "m": {"l": 2}}]


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("pipeline", HOUSES),
        ("pipeline", HOUSES.set_axis(["a", "b", "c", "d"])),
        ("pipeline", {"dataframe_records": HOUSES.astype({"built": str}).to_dict("records")}),
        ("arrays", {"image": IMAGES, "words": WORDS}),
        ("arrays", {"instances": [{"image": IMAGES[0].tolist(), "words": ["a", "b"]}]}),
        ("nested", pd.DataFrame(DIFFERENT)),
        ("nested", DIFFERENT),
    ],
)
def test_all_forms_of_inputs_equal_the_model_itself(
    client: BaseDeploymentClient, folders: dict[str, Path], name: str, inputs: Any
) -> None:
    data = inputs
    if isinstance(inputs, dict) and "dataframe_records" in inputs:
        data = HOUSES
    elif isinstance(inputs, dict) and "instances" in inputs:
        data = {"image": IMAGES[:1], "words": WORDS[:1]}
    elif isinstance(inputs, list):
        data = pd.DataFrame(inputs)

    predictions = client.predict(name, inputs)["predictions"]

    expected = mlflow.pyfunc.load_model(str(folders[name])).predict(data)
    columns = expected if isinstance(expected, dict) else {"": expected}
    returned = predictions if isinstance(predictions, dict) else {"": predictions}
    assert {key: np.asarray(column).tolist() for key, column in columns.items()} == returned


def test_rejected_inputs_raise_errors_of_mlflow(client: BaseDeploymentClient) -> None:
    for inputs, message in [
        (pd.DataFrame({"sepal_length": [1.0]}), "sepal_width: Field required"),
        (None, "no inputs"),
        ({"sepal_length": float("nan")}, "cannot express nan"),
    ]:
        with pytest.raises(MlflowException, match=message) as rejected:
            client.predict("classifier", inputs)
        assert rejected.value.error_code == "INVALID_PARAMETER_VALUE"
    for call in (lambda: client.predict("none", IRIS[:1]), lambda: client.get_deployment("none")):
        with pytest.raises(MlflowException) as unknown:
            call()
        assert unknown.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_absent_service_is_unavailable() -> None:
    client = get_deploy_client(f"serving:http://127.0.0.1:{free_port()}")
    with pytest.raises(MlflowException) as failed:
        client.list_deployments()
    assert failed.value.error_code == "TEMPORARILY_UNAVAILABLE"


def test_streams_chunks(client: BaseDeploymentClient) -> None:
    row = {"x": 2.0, "act": "say:a print:1"}
    assert [*client.predict_stream("speaker", row)] == ["a", {"x": 2.0, "act": "print"}]
    with pytest.raises(MlflowException, match="one row"):
        next(client.predict_stream("speaker", pd.DataFrame([row])))


def test_endpoints_are_deployments(client: BaseDeploymentClient) -> None:
    assert client.list_endpoints() == client.list_deployments()
    assert client.list_deployments("classifier") == [
        {"name": "classifier", "uri": "models:/classifier@champion", "version": "1", "state": "live"}
    ]
    assert client.get_endpoint("classifier")["contract"]
    assert client.predict(endpoint="pipeline", inputs=HOUSES) == client.predict("pipeline", HOUSES)
    with pytest.raises(MlflowException, match="name one"):
        client.predict("classifier", HOUSES, endpoint="pipeline")


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.create_deployment("classifier", "models:/classifier/2"),
        lambda client: client.update_deployment("classifier", "models:/classifier/2"),
        lambda client: client.delete_deployment("classifier"),
        lambda client: client.create_endpoint("classifier"),
        lambda client: client.update_endpoint("classifier"),
        lambda client: client.delete_endpoint("classifier"),
    ],
)
def test_changes_belong_to_the_registry(client: BaseDeploymentClient, change: Any) -> None:
    with pytest.raises(MlflowException, match="the registry promotes"):
        change(client)


def test_help_describes_the_target() -> None:
    assert "serving:http://HOST:PORT" in _target_help("serving")
    with pytest.raises(MlflowException, match="serving:http://"):
        get_deploy_client("serving:localhost")


# -- run-local


def test_run_local_serves_one_reference(service: Service, tmp_path: Path) -> None:
    port, url = free_port(), service.env["MLFLOW_TRACKING_URI"]
    words = ["--name", "speaker", "-m", "models:/speaker@champion", "-C", f"port={port}"]
    local = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "deployments", "run-local", "-t", "serving", *words],
        env=environment(url, tmp_path),
        start_new_session=True,
    )
    try:
        client = get_deploy_client(f"serving:http://127.0.0.1:{port}")

        def predictions() -> Any:
            assert local.poll() is None
            try:
                return client.predict("speaker", pd.DataFrame({"x": [2.0]}))["predictions"]
            except MlflowException:
                return None

        assert until(predictions) == [2.0]
    finally:
        os.killpg(local.pid, signal.SIGINT)
        local.wait(60)


def test_run_local_rejects_what_it_would_ignore() -> None:
    for name, flavor, message in [
        ("other", None, "use the name speaker"),
        ("speaker", "sklearn", "as python_function, not as sklearn"),
    ]:
        with pytest.raises(MlflowException, match=message):
            run_local("serving", name, "models:/speaker@champion", flavor)
