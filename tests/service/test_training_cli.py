"""`python -m training`: arguments, output and effects."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from training import registry
from training.cli import main

WITHOUT_MLFLOW = """
import sys
from training.cli import main
main(["bootstrap"])
sys.exit("mlflow was imported" if "mlflow" in sys.modules else 0)
"""


def stages(name: str = "iris") -> dict[str, str]:
    versions = mlflow.MlflowClient().search_model_versions(f"name='{name}'")
    return {str(version.version): str(version.current_stage) for version in versions}


@pytest.fixture
def versions(registry: str) -> None:
    """Register three versions of iris."""
    client = mlflow.MlflowClient()
    client.create_registered_model("iris")
    for _ in range(3):
        client.create_model_version("iris", "nowhere")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("model", ["iris", "diabetes"])
def test_train_prints_the_promote_command(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", model]) == 0
    printed = capsys.readouterr().out
    assert f"registered as {model} version 1" in printed
    match = re.search("python -m training (promote .*)", printed)
    assert match
    assert main(shlex.split(match[1])) == 0
    assert stages(model) == {"1": "Production"}
    assert capsys.readouterr().out == f"{model} version 1 is in Production now\n"


@pytest.mark.usefixtures("versions")
def test_promote_archives_the_previous_version(capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("1", "3", "2"):
        assert main(["promote", "--version", version]) == 0
    assert stages() == {"1": "Archived", "2": "Production", "3": "Archived"}
    assert capsys.readouterr().out.splitlines() == [
        "iris version 1 is in Production now",
        "iris version 3 is in Production now, archived: 1",
        "iris version 2 is in Production now, archived: 3",
    ]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_promote_archives_on_postgresql(scheme: str, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = postgres.create(f"training-{scheme}").replace("postgresql", scheme, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(registry.with_driver(uri))
    client.create_registered_model("iris")
    for _ in range(2):
        version = client.create_model_version("iris", "nowhere").version
        assert main(["promote", "--version", str(version)]) == 0
    assert stages() == {"1": "Archived", "2": "Production"}


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("stage", ["Staging", "staging", "Archived", "None"])
def test_promote_accepts_every_stage(stage: str) -> None:
    assert main(["promote", "--version", "1", "--stage", stage]) == 0
    assert stages()["1"] == stage.capitalize()


@pytest.mark.usefixtures("versions")
def test_promote_moves_an_alias(capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("1", "2"):
        assert main(["promote", "--version", version, "--alias", "champion"]) == 0
    promoted = mlflow.MlflowClient().get_model_version_by_alias("iris", "champion")
    assert str(promoted.version) == "2"
    assert set(stages().values()) == {"None"}
    assert capsys.readouterr().out.endswith("iris version 2 is @champion now\n")


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--version", "9"], "Model Version (name=iris, version=9) not found"),
        (["--version", "1", "--name", "rose"], "Registered Model with name=rose not found"),
        (["--version", "9", "--alias", "champion"], "version=9"),
        (["--version", "1", "--alias", "v1"], "'v1' is reserved"),
    ],
)
def test_registry_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["promote", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m training: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert set(stages().values()) == {"None"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serve"],
        ["promote"],
        ["promote", "--version", "one"],
        ["promote", "--version", "0"],
        ["promote", "--version", "1", "--stage", "Prod"],
        ["promote", "--version", "1", "--stage", "Staging", "--alias", "champion"],
        ["train", "--model", "rose"],
        ["train", "--seed", "-1"],
        ["train", "--test-size", "1"],
        ["train", "--regularization", "0"],
        ["train", "--regularization", "nan"],
    ],
    ids=shlex.join,
)
def test_wrong_arguments_fail_without_side_effects(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_promote_creates_no_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert main(["promote", "--version", "1"]) == 1
    assert f"there is no registry at {tmp_path}/mlflow.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_invalid_database_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    assert main(["promote", "--version", "1"]) == 1
    assert f"the registry at sqlite:///{tmp_path}/mlflow.db can't be used" in capsys.readouterr().err


def test_bootstrap_promotes_one_version_once(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bootstrap"]) == 0
    assert stages() == {"1": "Production"}
    assert main(["bootstrap"]) == 0
    assert stages() == {"1": "Production"}


@pytest.mark.usefixtures("versions")
def test_bootstrap_keeps_an_existing_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["promote", "--version", "2"])
    assert main(["bootstrap"]) == 0
    assert stages() == {"1": "None", "2": "Production", "3": "None"}


@pytest.mark.usefixtures("versions")
def test_bootstrap_without_work_does_not_import_mlflow() -> None:
    main(["promote", "--version", "2"])
    subprocess.run([sys.executable, "-c", WITHOUT_MLFLOW], check=True)


def test_bootstrap_creates_a_missing_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    assert main(["bootstrap"]) == 0
    assert stages() == {"1": "Production"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"mlflow.db", "mlruns"}


@pytest.mark.parametrize("command", [["bootstrap"], ["train"], ["promote", "--version", "1"]])
def test_unreachable_server_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Port 9 is `discard`, which has no listener here.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert "the registry at http://127.0.0.1:9 can't be used" in printed
    assert printed.count("\n") == 1
