"""A version that requires other packages is run by an interpreter of its own, beside one that does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from casting import Registry, actor
from conftest import NewRegistry
from live import Service, served, until
from packaging.requirements import Requirement
from pids import descendants
from promotions import Model

from serving.errors import NoEnvironment
from serving.runtime import environments

OTHER = "idna==3.10"
"""Another release of a package than the one that is installed here."""
SKINNY = f"mlflow-skinny=={version('mlflow')}"


def requiring(folder: Path, *lines: str, **part: Any) -> Path:
    """An actor that was logged with these requirements."""
    made = actor(folder, **part)
    (made / "requirements.txt").write_text("\n".join(lines))
    return made


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("environments")
    registry = Registry(new_registry(folder))
    here = f"idna=={version('idna')}"
    plain = requiring(folder, here, on_load=f"release:idna:{folder / 'plain'}")
    registry.promote("plain", registry.register("plain", plain))
    other = requiring(folder, SKINNY, OTHER, on_load=f"release:idna:{folder / 'other'}")
    registry.promote("other", registry.register("other", other))
    models = "models:/plain/Production,models:/other/Production"
    with served(registry.uri, folder, models=models, environments=True, load_seconds=100) as running:
        until(lambda: running.client.get("/models/plain").json()["state"] == "live")
        yield running


@pytest.mark.timeout(300)
def test_each_is_run_by_its_own_interpreter(service: Service) -> None:
    folder = Path(service.env["SERVING_STORE_DIR"]).parent
    while service.client.get("/models/other").json()["state"] != "live":
        # One that needs no environment answers while the other's is made.
        assert service.client.post("/models/plain/predict", json={"x": 2}).json()["prediction"] == 2.0
    assert service.client.post("/models/other/predict", json={"x": 3}).json()["prediction"] == 3.0
    assert (folder / "plain").read_text() == version("idna")
    assert (folder / "other").read_text() == "3.10"
    interpreters = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in _forkers(service)}
    assert len(interpreters) == 2
    assert sys.executable.encode() in interpreters


def _forkers(service: Service) -> set[int]:
    return {pid for pid in descendants(service.process.pid) if descendants(pid)}


@pytest.mark.timeout(300)
def test_what_can_not_be_installed_is_told(service: Service) -> None:
    registry = Registry(service.env["MLFLOW_TRACKING_URI"])
    model = Model("plain", service, registry)
    folder = Path(service.env["SERVING_STORE_DIR"]).parent
    for lines, reason in [
        (["no-such-package-anywhere==1"], "can't be installed"),
        (["--index-url http://127.0.0.1:9"], "can't be read"),
    ]:
        version = registry.register("plain", requiring(folder, *lines))
        model.promote(version)
        model.until(lambda told, version=version: (told["candidate"] or {}).get("version") == version)
        assert reason in model.until_told(version, "rejected")["reason"]
    assert model.predict(2.0).json()["prediction"] == 2.0


# -- in plain functions


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"numpy=={version('numpy')}", True),
        ("numpy>=1", True),
        ("numpy", True),
        ("numpy<1", False),
        ("no-such-package", False),
        ("numpy @ https://example.org/numpy.whl", False),
        ("NumPy>1 # a comment", True),
        ('no-such-package; python_version < "3"', True),
        ("# a comment", True),
        ("", True),
    ],
)
def test_requirements_are_met_by_what_is_installed(tmp_path: Path, line: str, expected: bool) -> None:
    (tmp_path / "requirements.txt").write_text(f"{line}\n")
    assert (not environments.unmet(environments.requirements(tmp_path / "requirements.txt"))) is expected


def test_a_version_without_requirements_needs_nothing(tmp_path: Path) -> None:
    assert environments.requirements(tmp_path / "requirements.txt") == ()


@pytest.mark.parametrize("line", ["-r /etc/passwd", "-e .", "--extra-index-url http://x", "a b c", "./here"])
def test_what_is_no_requirement_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "requirements.txt").write_text(line)
    with pytest.raises(NoEnvironment):
        environments.requirements(tmp_path / "requirements.txt")


def test_mlflow_and_what_a_model_process_needs_are_added_unless_they_are_named() -> None:
    own = environments._own([Requirement("Pandas==2"), Requirement("mlflow-skinny")])
    assert own == ["numpy", "orjson", "pyarrow", "pydantic"]
    assert f"mlflow=={version('mlflow')}" in environments._own([])
