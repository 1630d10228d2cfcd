"""Models of large libraries are saved and served in a separate environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from site import getsitepackages

import pytest

from tests.support.model_zoo.entries import entries
from tests.support.model_zoo.heavy_libraries import ENVIRONMENT, REQUIREMENTS
from tests.support.model_zoo.protocols import PROTOCOLS
from tests.support.model_zoo.service import Zoo, begin_to_save, zoo_of
from tests.support.registry import NewRegistry, quiet

# The first test waits until the libraries are installed.
pytestmark = pytest.mark.timeout(900)

with quiet():
    NAMES = [*entries("heavy_libraries")]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter with these libraries and the test environment's packages."""
    folder = tmp_path_factory.mktemp("heavy")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    program = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    lines = [f"import site; site.addsitedir({each!r})" for each in getsitepackages()]
    (packages / "tests.pth").write_text("\n".join(lines))
    constraints = folder / "constraints.txt"
    installed = [
        f"{each.name}=={each.version}" for each in distributions() if each.name != "mlflow-serving-front"
    ]
    constraints.write_text("\n".join(installed))
    command: list[str | Path] = [
        program,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "install",
        "-c",
        constraints,
    ]
    subprocess.run([*command, *REQUIREMENTS], check=True)
    return program


@pytest.fixture(scope="module")
def zoo(python: Path, new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Serve these models."""
    home, folders = tmp_path_factory.mktemp("model-zoo"), tmp_path_factory.mktemp("models")
    program = (python, "-m", "serving")  # model processes use this interpreter too
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with begin_to_save(folders, "heavy_libraries", python=python) as saving:
            pass
        assert saving.returncode == 0
        with zoo_of(["heavy_libraries"], folders, new_registry(home), home, program=program) as zoo:
            yield zoo


@pytest.mark.parametrize("name", NAMES)
def test_model_goes_live(zoo: Zoo, name: str) -> None:
    state = zoo.state(name)
    assert state["state"] == "live", (state["reason"], state["candidate"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_the_models_own(zoo: Zoo, name: str, protocol: str) -> None:
    assert not (lines := zoo.differences(name, protocol)), "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_concurrent_requests_do_not_change_predictions(zoo: Zoo, name: str) -> None:
    assert not (lines := zoo.differences_together(name)), "\n".join(lines)
