"""The scripts with a fake Python that records its arguments: installation, training and start."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.support.service import until
from training.cli import main

ROOT = Path(__file__).parents[2]
# The commands that the scripts call, except Python.
TOOLS = ("bash", "cat", "chmod", "cmp", "cp", "dirname", "env", "ln", "mkdir")
# A fake Python that creates environments and copies itself into them.
RECORDING = """#!/usr/bin/env bash
[[ $1 == --version ]] && echo "Python 3.11.9" && exit
[[ "$1 $2" == "-m venv" ]] && mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/serving
[[ "$1" == -c ]] || echo "${0##*/} $*" >>"$CALLS"
[[ "$*" != *"$FAILING"* ]]
"""
# A wrapper of the Python that runs the tests.
REAL = f"""#!/usr/bin/env bash
PYTHONPATH={ROOT} exec {sys.executable} "$@"
"""
PIP = "python -m pip --quiet --disable-pip-version-check"
BOOTSTRAP = "python -m training bootstrap"
# A fake `serving` that prints its arguments and its registry.
TELLING = """#!/usr/bin/env bash
echo "serving $* on $MLFLOW_TRACKING_URI"
"""


def executable(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


@dataclass
class Project:
    """A separate checkout, and a machine with few commands."""

    root: Path
    bin: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> Path:
        return self.root.parent / "calls"

    def run(self, script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        env = {"PATH": str(self.bin), "CALLS": str(self.calls), "FAILING": "nothing fails"} | self.env
        return subprocess.run(
            [self.root / "scripts" / script, *arguments], env=env, capture_output=True, text=True, **options
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root, commands = tmp_path / "a project", tmp_path / "bin"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("pyproject.toml", "constraints.txt", "constraints-dev.txt"):
        (root / name).write_text(f"# {name}\n")
    commands.mkdir()
    for tool in TOOLS:
        (commands / tool).symlink_to(shutil.which(tool) or tool)
    executable(commands / "python3", RECORDING)
    return Project(root, commands)


@pytest.fixture
def installed(project: Project) -> Project:
    assert project.run("test").returncode == 0
    return project


def test_first_start_creates_the_constrained_environment(project: Project) -> None:
    done = project.run("test", "-k", "it")
    assert done.returncode == 0
    assert project.called() == [
        "python3 -m venv --clear .venv",
        f"{PIP} install --require-hashes -r constraints.txt -r constraints-dev.txt",
        f"{PIP} install --no-deps --no-build-isolation --editable .",
        "python -m pytest -k it",
    ]
    assert all(line.startswith("scripts/test: ") for line in done.stderr.splitlines())


def test_serving_installs_no_development_packages(project: Project) -> None:
    assert project.run("serve").returncode == 0
    assert not any("constraints-dev" in call for call in project.called())
    assert project.called()[-1] == "serving run"


@pytest.mark.parametrize("script", ["test", "serve", "check", "docs"])
def test_second_start_installs_nothing(installed: Project, script: str) -> None:
    done = installed.run(script)
    assert not any("install" in call or "venv" in call for call in installed.called())
    assert done.stderr == ""


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", "constraints-dev.txt"])
def test_changed_requirements_update_the_same_environment(installed: Project, changed: str) -> None:
    (installed.root / changed).write_text("# changed\n")
    assert installed.run("test").returncode == 0
    assert sum("install" in call for call in installed.called()) == 2
    assert not any("venv" in call for call in installed.called())


def test_moved_checkout_is_reinstalled(installed: Project) -> None:
    installed.root = installed.root.rename(installed.root.parent / "moved")
    assert installed.run("test").returncode == 0
    assert any("--editable" in call for call in installed.called())


def test_environment_without_its_python_is_recreated(installed: Project) -> None:
    (installed.root / ".venv" / "bin" / "python").unlink()
    assert installed.run("test").returncode == 0
    assert "python3 -m venv --clear .venv" in installed.called()


def test_missing_openmp_library_is_borrowed(installed: Project) -> None:
    libraries = installed.root / ".venv" / "lib" / "python3.11" / "site-packages" / "scikit_learn.libs"
    libraries.mkdir(parents=True)
    (bundled := libraries / "libgomp-e985.so.1.0.0").touch()
    installed.env = {"FAILING": "libgomp.so.1"}
    assert installed.run("test").returncode == 0
    assert (installed.root / ".venv" / "openmp" / "libgomp.so.1").resolve() == bundled
    assert installed.called()[-1] == "python -m pytest"


def test_failed_installation_is_retried(project: Project) -> None:
    project.env = {"FAILING": "--require-hashes"}
    assert project.run("test").returncode != 0
    assert not any("pytest" in call for call in project.called())
    project.env = {}
    assert project.run("test").returncode == 0
    assert any("--require-hashes" in call for call in project.called())


@pytest.mark.parametrize(
    ("python", "complaint"),
    [
        (None, "scripts/test: Python 3.11 or newer is required, but not on the PATH\n"),
        ("exit 1", "scripts/test: Python 3.11 or newer is required, but not on the PATH\n"),
        (
            '[[ "$2" != *ensurepip* ]]',
            "scripts/test: python3 cannot create virtual environments: install its venv module"
            " (Debian: python3-venv)\n",
        ),
    ],
    ids=["no Python", "too old", "no venv"],
)
def test_missing_prerequisite_prints_one_line(project: Project, python: str | None, complaint: str) -> None:
    (project.bin / "python3").unlink()
    if python:
        executable(project.bin / "python3", f"#!/usr/bin/env bash\n{python}\n")
    done = project.run("test")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", complaint)


def test_newer_python_is_used_if_first_is_old(project: Project) -> None:
    executable(project.bin / "python3", "#!/usr/bin/env bash\nexit 1\n")
    executable(project.bin / "python3.12", RECORDING)
    assert project.run("test").returncode == 0
    assert project.called()[0] == "python3.12 -m venv --clear .venv"


@pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy"])
def test_failed_check_does_not_skip_the_others(installed: Project, failing: str) -> None:
    installed.env = {"FAILING": failing}
    assert installed.run("check").returncode == 1
    assert installed.called() == ["python -m ruff check", "python -m ruff format --check", "python -m mypy"]


@pytest.mark.parametrize(
    ("models", "arguments", "bootstraps"),
    [
        (None, [], True),
        ("models:/iris/Production", [], True),
        ("models:/wine/1,models:/iris/Production", [], True),
        ("models:/wine/1", [], False),
        ("models:/wine/1", ["--models", "models:/iris/Production"], True),
        (None, ["--models", "models:/wine/1"], False),
        (None, ["--models=models:/wine/1"], False),
        (None, ["--port", "8001"], True),
        (None, ["--help"], False),
    ],
)
def test_first_version_is_created_only_for_served_models(
    installed: Project, models: str | None, arguments: list[str], bootstraps: bool
) -> None:
    installed.env = {"SERVING_MODELS": models} if models else {}
    assert installed.run("serve", *arguments).returncode == 0
    assert (BOOTSTRAP in installed.called()) == bootstraps
    assert installed.called()[-1] == " ".join(["serving run", *arguments])


def test_serving_starts_if_first_training_fails(installed: Project) -> None:
    installed.env = {"FAILING": "bootstrap"}
    done = installed.run("serve")
    assert (done.returncode, installed.called()[-1]) == (0, "serving run")
    assert done.stderr == "scripts/serve: could not create a first version; the service waits for one\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "sqlite:///{root}/mlruns/mlflow.db"),
        ("sqlite:///own.db", "sqlite:///{caller}/own.db"),
        ("sqlite:////var/own.db", "sqlite:////var/own.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_registry_does_not_depend_on_the_folder(
    installed: Project, tmp_path: Path, given: str | None, expected: str
) -> None:
    installed.env = {"MLFLOW_TRACKING_URI": given} if given else {}
    executable(installed.root / ".venv" / "bin" / "serving", TELLING)
    expected = expected.format(root=installed.root, caller=tmp_path)
    assert installed.run("serve", cwd=tmp_path).stdout == f"serving run on {expected}\n"


@pytest.fixture
def real(installed: Project) -> Project:
    """Return the checkout with a Python that executes its arguments."""
    executable(installed.root / ".venv" / "bin" / "python", REAL)
    executable(installed.root / ".venv" / "bin" / "serving", TELLING)
    stamp = f"{installed.root}\nPython {sys.version.split()[0]}\n# pyproject.toml\n# constraints.txt\n"
    (installed.root / ".venv" / "installed").write_text(stamp)
    return installed


def test_serve_trains_and_serves_a_first_version(real: Project) -> None:
    uri = f"sqlite:///{real.root}/mlruns/mlflow.db"
    first, second = real.run("serve"), real.run("serve")
    assert first.stdout == second.stdout == f"serving run on {uri}\n"
    assert "iris version 1 is in Production now" in first.stderr
    assert second.stderr == ""
    (version,) = mlflow.MlflowClient(uri).search_model_versions()
    assert (version.name, version.current_stage) == ("iris", "Production")


def test_ui_keeps_a_running_server(real: Project) -> None:
    real.env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    done = real.run("ui")
    assert done.returncode == 1
    assert "open http://127.0.0.1:5000" in done.stderr


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether the port accepts connections."""
    with socket.socket() as calling:
        return calling.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def ui(real: Project, registry: str) -> Iterator[str]:
    """Run `scripts/ui` on a registry and yield its address."""
    port = free_port()
    env = {"PATH": str(real.bin), "MLFLOW_TRACKING_URI": registry}
    command: list[str | Path] = [real.root / "scripts" / "ui", "--port", str(port)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            next(line for line in process.stderr if "Application startup complete" in line)
            until(lambda: listens(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate()


def test_training_through_the_ui_reaches_the_registry(
    ui: str, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ui)
    assert main(["bootstrap"]) == 0
    assert main(["bootstrap"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    (version,) = mlflow.MlflowClient().search_model_versions()
    assert version.current_stage == "Production"
    assert mlflow.pyfunc.load_model("models:/iris/1").metadata.run_id == version.run_id
    assert list((tmp_path / "mlruns").rglob("model.skops"))
