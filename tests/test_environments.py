"""A version that requires other packages is run by an interpreter of its own, beside one that does not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import old_models
import pytest
from casting import Registry, actor
from conftest import NewRegistry
from live import SELDOM, Service, served, until
from old_models import OldModels
from packaging.requirements import Requirement
from pids import descendants
from promotions import Model

from serving.errors import NoEnvironment
from serving.runtime import environments
from serving.runtime.environments import Environments

OTHER = "idna==3.10"
"""Another release of a package than the one that is installed here."""
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHON = "3.10"
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


RELEASES = ("2.9.2", "2.16.2", "2.22.4")
MODELS = ("classifier", "function")


@pytest.fixture(scope="module")
def old(
    old_mlflow: OldModels, new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Serve models of older releases of MLflow, and one that was logged under another Python."""
    folder = tmp_path_factory.mktemp("old")
    registry = Registry(new_registry(folder))
    names = []
    for release in RELEASES:
        for kind in MODELS:
            names.append(f"{kind}-{release}")
            registry.register(names[-1], old_mlflow(release) / kind)
    path = os.environ["PATH"]
    if other := old_models.interpreter(OTHER_PYTHON):
        names.append("python")
        registry.register("python", old_mlflow("2.16.2", other) / "function")
        path = f"{other.parent}{os.pathsep}{path}"
    models = ",".join(f"models:/{name}/1" for name in names)
    settings = {
        "models": models,
        "environments": True,
        "load_seconds": 100,
        "poll_seconds": SELDOM,
        "_path": path,
    }
    with served(registry.uri, folder, **settings) as running:
        ends = time.monotonic() + 280
        while not running.client.get("/ready").is_success:
            assert time.monotonic() < ends, running.ready()
            time.sleep(0.2)
        yield running


@pytest.mark.timeout(600)
@pytest.mark.parametrize("release", RELEASES)
def test_models_of_older_mlflow_run_in_their_environments(old: Service, release: str) -> None:
    assert old.client.post(f"/models/classifier-{release}/predict", json={"x": 3}).json()["prediction"] == 1
    found = old.client.post(
        f"/models/function-{release}/invocations",
        json={
            "dataframe_records": [{"x": 1.5, "name": "ä"}, {"x": 2.0, "name": "b"}],
            "params": {"factor": 3.0},
        },
    )
    assert found.json()["predictions"] == [
        {"name": "ä", "parts": [1.5, 4.5]},
        {"name": "b", "parts": [2.0, 6.0]},
    ]


@pytest.mark.timeout(600)
def test_model_of_another_python_is_run_by_it(old: Service) -> None:
    if "python" not in {model["name"] for model in old.ready()["models"]}:
        pytest.skip(f"there is no Python {OTHER_PYTHON}")
    found = old.client.post(
        "/models/python/invocations", json={"dataframe_records": [{"x": 1.5, "name": "a"}]}
    )
    assert found.json()["predictions"] == [{"name": "a", "parts": [1.5, 3.0]}]
    programs = {Path(f"/proc/{pid}/exe").readlink().name for pid in _forkers(old)}
    assert programs == {f"python{HERE}", f"python{OTHER_PYTHON}"}


# -- in plain functions


def needs(folder: Path, *lines: str) -> environments.Needs:
    """Read what a model requires that was logged with these requirements."""
    (folder / "requirements.txt").write_text("\n".join(lines))
    return environments.read(folder)


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
    assert (not environments.differences(needs(tmp_path, line))) is expected


def test_a_version_without_requirements_needs_nothing(tmp_path: Path) -> None:
    assert environments.differences(environments.read(tmp_path)) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-r /etc/passwd", "can't be read: it refers to /etc/passwd, which is not among its files"),
        ("-r ../other.txt", "refers to ../other.txt, which is not among its files"),
        ("-e .", "can't be read: '-e .' is an option, which is not taken from a model"),
        (
            "--extra-index-url http://x",
            "let the package index be set where this service runs .UV_INDEX, UV_DEFAULT",
        ),
        ("a b c", "'a b c' is no requirement. Log it with pip_requirements"),
        ("./here", "'./here' is no requirement"),
    ],
)
@pytest.mark.anyio
async def test_unusable_requirement_is_rejected(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(NoEnvironment, match=said) as rejected:
        await Environments(tmp_path, strict=False).interpreter(needs(tmp_path, line))
    assert not rejected.value.may_heal


def test_requirement_files_refer_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("numpy<3")
    (tmp_path / "more.txt").write_text("orjson\n-r requirements.txt")
    found = needs(tmp_path, "numpy", "-r more.txt", "-c constraints.txt")
    assert [*map(str, found.packages)] == ["numpy", "orjson"]
    assert [*map(str, found.constraints)] == ["numpy<3"]
    assert not found.fault


def test_python_env_names_the_python_and_the_packages(tmp_path: Path) -> None:
    (tmp_path / "python_env.yaml").write_text(
        "python: 3.10.4\ndependencies: [-r requirements.txt, idna==3.10]"
    )
    found = needs(tmp_path, "orjson", 'colorama; python_version >= "3.11"')
    assert found.python == "3.10"
    assert [*map(str, found.applying())] == ["orjson", "idna==3.10"]
    assert [*map(str, environments.differences(found))] == [
        f"Python 3.10 (installed: {HERE})",
        f"idna==3.10 (installed: {version('idna')})",
    ]


def test_python_of_older_models_stands_in_mlmodel(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {python_version: 3.9.1}}")
    assert environments.read(tmp_path).python == "3.9"


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["[", "- a list"])
async def test_unreadable_python_env_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "python_env.yaml").write_text(text)
    with pytest.raises(NoEnvironment, match="the files of its environment can't be read"):
        await Environments(tmp_path, strict=False).interpreter(environments.read(tmp_path))


@pytest.mark.anyio
async def test_python_without_interpreter_is_rejected_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    for python, said, heals in [
        ("3.8", "it was logged under Python 3.8, and model processes need 3.10 or later", False),
        (
            "3.99",
            f"service runs under Python {HERE}, and uv has no Python 3.99.*uv python install 3.99",
            True,
        ),
    ]:
        with pytest.raises(NoEnvironment, match=said) as rejected:
            await Environments(tmp_path, strict=False).interpreter(environments.Needs(python))
        assert rejected.value.may_heal is heals


@pytest.mark.anyio
async def test_missing_uv_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoEnvironment, match="uv is not installed where this service runs: install the extra"):
        await Environments(tmp_path, strict=False).interpreter(environments.Needs())


@pytest.mark.anyio
async def test_conflicting_requirements_are_reported_in_words_of_uv(tmp_path: Path) -> None:
    found = needs(tmp_path, SKINNY, "idna==3.10", "idna==3.9")
    with pytest.raises(NoEnvironment, match="can't be installed together.*uv reports: .*idna==3.10"):
        await Environments(tmp_path / "store", strict=False).interpreter(found)
    assert [*(tmp_path / "store").iterdir()] == []


@pytest.mark.parametrize(
    ("required", "installed", "expected"),
    [
        ("a==1.5.2", "1.9.1", True),
        ("a==1.5.2", "1.5.7", False),
        ("a==1.5.2", "2.5.2", True),
        ("a==1.5.*", "1.6", True),
        ("a<1", "1.6", True),
        ("a==1", "", True),
        ("a", "", True),
        ("mlflow==3.1.0", "3.17.2", False),
        ("mlflow==2.22.4", "3.17.2", True),
    ],
)
def test_patch_releases_do_not_matter(required: str, installed: str, expected: bool) -> None:
    assert environments._matters(Requirement(required), installed) is expected


def test_long_lists_of_differences_are_cut() -> None:
    found = [environments.Difference(f"a{number}", "1", matters=number > 10) for number in range(13)]
    assert environments.listed(found) == (
        "a11 (installed: 1), a12 (installed: 1), "
        + ", ".join(f"a{number} (installed: 1)" for number in range(8))
        + " and 3 more"
    )


def test_what_a_model_process_needs_is_added() -> None:
    own = environments._own([Requirement("Pandas==2"), Requirement("mlflow-skinny")], "3.12")
    assert own == ["numpy", "orjson", "pyarrow"]
    own = environments._own([], "3.11")
    assert {"setuptools<81", f"mlflow=={version('mlflow')}"} < {*own}
