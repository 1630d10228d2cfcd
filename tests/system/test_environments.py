"""A version that requires other packages runs in an interpreter of its own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from serving.contract import model_files
from serving.errors import ProcessDied
from serving.processes import package_list, requirements, virtual_environments
from serving.processes.virtual_environments import Environments
from serving.promotion_errors import EnvironmentUnavailable, LoadFailed, UntrustedArtifact
from tests.support import mlflow_releases
from tests.support.followers import FollowerHarness, settle
from tests.support.mlflow_releases import OldModels
from tests.support.process_ids import descendants
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import SELDOM, Service, served, until

OTHER = "idna==3.10"
"""Return a release of a package that differs from the installed one."""
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHON = "3.10"
SKINNY = f"mlflow-skinny=={version('mlflow')}"


def requiring(folder: Path, *lines: str, **part: Any) -> Path:
    """Return an actor that was logged with these requirements."""
    path = save_scripted_model(folder, **part)
    (path / "requirements.txt").write_text("\n".join(lines))
    return path


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
def test_every_version_runs_in_its_own_interpreter(service: Service) -> None:
    folder = Path(service.env["SERVING_STORE_DIR"]).parent
    while service.client.get("/models/other").json()["state"] != "live":
        # A version without an environment serves while the other's is created.
        assert service.client.post("/models/plain/predict", json={"x": 2}).json()["prediction"] == 2.0
    assert service.client.post("/models/other/predict", json={"x": 3}).json()["prediction"] == 3.0
    assert (folder / "plain").read_text() == version("idna")
    assert (folder / "other").read_text() == "3.10"
    interpreters = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in _forkers(service)}
    assert len(interpreters) == 2
    assert sys.executable.encode() in interpreters


def _forkers(service: Service) -> set[int]:
    return {pid for pid in descendants(service.process.pid) if descendants(pid)}


def has_candidate(version: str, state: dict[str, Any]) -> bool:
    return (state["candidate"] or {}).get("version") == version


@pytest.mark.timeout(300)
def test_uninstallable_requirements_are_reported(service: Service) -> None:
    registry = Registry(service.env["MLFLOW_TRACKING_URI"])
    model = Model("plain", service, registry)
    folder = Path(service.env["SERVING_STORE_DIR"]).parent
    for lines, reason in [
        (["no-such-package-anywhere==1"], "can't be installed"),
        (["--index-url http://127.0.0.1:9"], "can't be read"),
    ]:
        version = registry.register("plain", requiring(folder, *lines))
        model.promote(version)
        model.until(partial(has_candidate, version))
        assert reason in model.until_tagged(version, "rejected")["reason"]
    assert model.predict(2.0).json()["prediction"] == 2.0


OLD = (("classifier", "2.9.2"), ("function", "2.9.2"), ("function", "2.16.2"), ("boosting", "2.22.4"))
"""Models and the MLflow releases that log them; 2.16.2 under another Python if installed."""


@pytest.fixture(scope="module")
def old(
    old_mlflow: OldModels, new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Serve models of older releases of MLflow."""
    folder = tmp_path_factory.mktemp("old")
    registry = Registry(new_registry(folder))
    path = os.environ["PATH"]
    for kind, release in OLD:
        other = mlflow_releases.interpreter(OTHER_PYTHON) if release == "2.16.2" else None
        if other:
            path = f"{other.parent}{os.pathsep}{path}"
        registry.register(f"{kind}-{release}", old_mlflow(release, other or sys.executable) / kind)
    models = ",".join(f"models:/{kind}-{release}/1" for kind, release in OLD)
    settings = {
        "models": models,
        "environments": True,
        "load_seconds": 100,
        "poll_seconds": SELDOM,
        "_path": path,
    }
    with served(registry.uri, folder, **settings) as running:
        yield running


def until_all_live(service: Service) -> None:
    """Wait until environments are created, which takes longer than the usual timeout."""
    for _ in OLD:
        with suppress(AssertionError):
            service.until_ready()
    service.until_ready()


@pytest.mark.timeout(600)
def test_models_of_older_mlflow_run_in_their_environments(old: Service) -> None:
    until_all_live(old)
    for name in ("classifier-2.9.2", "boosting-2.22.4"):
        assert old.client.post(f"/models/{name}/predict", json={"x": 3}).json()["prediction"] == 1
    rows = [{"x": 1.5, "name": "ä"}, {"x": 2.0, "name": "b"}]
    body = {"dataframe_records": rows, "params": {"factor": 3.0}}
    for name in ("function-2.9.2", "function-2.16.2"):
        response = old.client.post("/invocations", json=body, headers={"X-Model": name})
        assert response.json()["predictions"] == [
            {"name": "ä", "parts": [1.5, 4.5]},
            {"name": "b", "parts": [2.0, 6.0]},
        ]


@pytest.mark.optional
@pytest.mark.timeout(600)
def test_model_runs_under_its_own_python(old: Service) -> None:
    if not mlflow_releases.interpreter(OTHER_PYTHON):
        pytest.skip(f"there is no Python {OTHER_PYTHON}")
    until_all_live(old)
    programs = {Path(f"/proc/{pid}/exe").readlink().name for pid in _forkers(old)}
    assert programs == {f"python{HERE}", f"python{OTHER_PYTHON}"}


# -- in one process


@pytest.mark.anyio
async def test_load_failure_names_differing_packages(harness: FollowerHarness, old_mlflow: OldModels) -> None:
    folder = await asyncio.to_thread(old_mlflow, "2.9.2")
    number = harness.registry.register("actor", folder / "boosting")
    follower = harness.follow(f"models:/actor/{number}")
    await settle(follower)
    assert follower.candidate
    assert "loading it raised" in follower.candidate.reason
    assert f"scikit-learn==1.5.2 (installed: {version('scikit-learn')})" in follower.candidate.reason
    assert "set SERVING_ENVIRONMENTS=true to run it" in follower.candidate.reason


@pytest.mark.anyio
async def test_python_of_a_failed_load_is_named(harness: FollowerHarness, tmp_path: Path) -> None:
    folder = requiring(tmp_path, on_load="raise:broken")
    (folder / "python_env.yaml").write_text("python: 3.10.1")
    harness.registry.promote("actor", harness.registry.register("actor", folder))
    follower = harness.follow()
    await settle(follower)
    assert follower.candidate
    assert follower.candidate.reason == (
        "loading it raised ValueError: broken. "
        f"It requires Python 3.10 (installed: {HERE}): {requirements.REMEDY}"
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [OTHER, "no-such-package"],
            [f"{OTHER} (installed: {version('idna')})", "no-such-package (not installed)"],
        ),
        ([f"idna=={version('idna')}.99"], []),
        ([f"idna=={version('idna')}"], []),
    ],
)
async def test_version_with_other_packages_is_live_with_a_warning(
    harness: FollowerHarness, tmp_path: Path, lines: list[str], expected: list[str]
) -> None:
    harness.registry.promote("actor", harness.registry.register("actor", requiring(tmp_path, *lines)))
    follower = harness.follow()
    await settle(follower)
    assert follower.slot.live
    named = ", ".join(expected)
    assert follower.slot.live.warnings == [
        "actor version 1 may predict differently than when it was logged: "
        f"it requires {named}: {requirements.REMEDY}"
    ] * bool(expected)


def test_warning_about_other_packages_is_shown_everywhere(new_registry: NewRegistry, tmp_path: Path) -> None:
    registry = Registry(new_registry(tmp_path))
    number = registry.register("actor", requiring(tmp_path, OTHER))
    registry.promote("actor", number)
    warning = (
        "actor version 1 may predict differently than when it was logged: "
        f"it requires {OTHER} (installed: {version('idna')}): {requirements.REMEDY}"
    )
    with served(registry.uri, tmp_path, models="models:/actor/Production") as service:
        service.until_ready()
        assert service.wait_for_log(event=warning)["level"] == "warning"
        (shown,) = service.ready()["models"]
        (on_page,) = service.client.get("/status").json()["models"]
        assert shown["warnings"] == on_page["warnings"] == [warning]
        assert re.search(
            r"^serving_model_warnings\{.*\} 1\.0$", service.client.get("/metrics").text, re.MULTILINE
        )
        until(
            lambda: registry.client.get_model_version("actor", number).tags.get("serving.warnings") == warning
        )


def wheel(folder: Path, name: str, code: str) -> str:
    """Make a package that runs `code` when it is imported, and return the requirement for it."""
    target = folder / f"{name}-99-py3-none-any.whl"
    info = f"{name}-99.dist-info"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(f"{name}/__init__.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name} @ {target.as_uri()}"


@pytest.mark.anyio
@pytest.mark.timeout(300)
async def test_environment_is_retried_after_fork_server_death(
    harness: FollowerHarness, tmp_path: Path
) -> None:
    broken = wheel(tmp_path, "orjson", "raise AttributeError('not of this release')")
    harness.registry.register("actor", requiring(tmp_path, SKINNY, broken))
    follower = harness.follow("models:/actor/1", environments=True)
    resolved, _ = await follower._registry.resolve(follower.slot.reference)
    reason = (
        "the process that starts model processes in this version's own environment ended with status 1: "
        "AttributeError: not of this release"
    )
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(ProcessDied) as died:
                await follower._gate.load_and_verify(resolved, follower.slot)
            assert str(died.value) == reason
        with pytest.raises(LoadFailed) as rejected:
            await follower._gate.load_and_verify(resolved, follower.slot)
        assert str(rejected.value) == f"{reason} (3 times in a row)"


# -- in plain functions


def read(folder: Path) -> requirements.Needs:
    """Read the requirements of the model in a folder, with or without an `MLmodel`."""
    if not (folder / "MLmodel").exists():
        (folder / "MLmodel").write_text("flavors: {}")
    with ThreadPoolExecutor(1) as pool:  # some tests already run an event loop
        return requirements.read(pool.submit(asyncio.run, model_files.read(folder)).result())


def needs(folder: Path, *lines: str) -> requirements.Needs:
    """Read the requirements of a model that was logged with them."""
    (folder / "requirements.txt").write_text("\n".join(lines))
    return read(folder)


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
        ('no-such-package; extra == "more"', True),
        ("# a comment", True),
        ("", True),
    ],
)
def test_requirements_match_installed_packages(tmp_path: Path, line: str, expected: bool) -> None:
    assert (not requirements.differences(needs(tmp_path, line))) is expected


def test_version_without_requirements_needs_nothing(tmp_path: Path) -> None:
    assert requirements.differences(read(tmp_path)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "-r /etc/passwd",
            "refers to /etc/passwd: it is outside the folder of the version",
        ),
        ("-r ../other.txt", "refers to ../other.txt: it is outside the folder of the version"),
        ("-e .", "can't be read: '-e .' is an option, and options in models are not allowed"),
        (
            "--extra-index-url http://x",
            "set the package index where this service runs .UV_INDEX, UV_DEFAULT",
        ),
        ("a b c", "'a b c' is not a requirement. Log the model with pip_requirements"),
        ("./here", "'./here' is not a requirement"),
    ],
)
@pytest.mark.anyio
async def test_unusable_requirement_is_rejected(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=message) as rejected:
        await Environments(tmp_path, strict=False).interpreter(needs(tmp_path, line))
    assert not rejected.value.may_heal


def test_requirement_files_refer_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("numpy<3")
    (tmp_path / "more.txt").write_text("orjson\n-r requirements.txt")
    needed = needs(tmp_path, "numpy", "-r more.txt", "-c constraints.txt")
    assert [*map(str, needed.packages)] == ["numpy", "orjson"]
    assert [*map(str, needed.constraints)] == ["numpy<3"]
    assert not needed.fault


def test_python_env_names_the_python_and_the_packages(tmp_path: Path) -> None:
    (tmp_path / "python_env.yaml").write_text(
        "python: 3.10.4\ndependencies: [-r requirements.txt, idna==3.10]"
    )
    needed = needs(tmp_path, "orjson", 'colorama; python_version >= "3.11"')
    assert needed.python == "3.10"
    assert [*map(str, needed.applicable())] == ["orjson", "idna==3.10"]
    assert [*map(str, requirements.differences(needed))] == [
        f"Python 3.10 (installed: {HERE})",
        f"idna==3.10 (installed: {version('idna')})",
    ]


def test_python_of_older_models_is_read_from_mlmodel(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {python_version: 3.9.1}}")
    assert read(tmp_path).python == "3.9"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text", ["[", "- a list", "python: 3.10", "python: new", "dependencies: numpy", "python: ['3.10']"]
)
async def test_unreadable_python_env_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "python_env.yaml").write_text(text)
    with pytest.raises(EnvironmentUnavailable, match="the files of its environment can't be read"):
        await Environments(tmp_path, strict=False).interpreter(read(tmp_path))


@pytest.mark.anyio
async def test_python_without_interpreter_is_rejected_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    for python, message, heals in [
        ("3.8", "it was logged under Python 3.8, and model processes need 3.10 or later", False),
        (
            "3.99",
            f"service runs under Python {HERE}, and uv has no Python 3.99.*uv python install 3.99",
            True,
        ),
    ]:
        with pytest.raises(EnvironmentUnavailable, match=message) as rejected:
            await Environments(tmp_path, strict=False).interpreter(requirements.Needs(python))
        assert rejected.value.may_heal is heals


@pytest.mark.anyio
async def test_missing_uv_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    remedy = re.escape("uv is not installed where this service runs: pip install 'mlflow-serving-front[env")
    with pytest.raises(EnvironmentUnavailable, match=remedy):
        await Environments(tmp_path, strict=False).interpreter(requirements.Needs())


@pytest.mark.anyio
async def test_conflicting_requirements_are_reported_by_uv(tmp_path: Path) -> None:
    needed = needs(tmp_path, SKINNY, "idna==3.10", "idna==3.9")
    with pytest.raises(EnvironmentUnavailable, match="can't be installed together.*uv reports: .*idna==3.10"):
        await Environments(tmp_path / "store", strict=False).interpreter(needed)
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
    assert requirements._matters(Requirement(required), installed) is expected


def test_long_lists_of_differences_are_cut() -> None:
    differing = [requirements.Difference(f"a{number}", "1", matters=number > 10) for number in range(13)]
    assert requirements.describe(differing) == (
        "a11 (installed: 1), a12 (installed: 1), "
        + ", ".join(f"a{number} (installed: 1)" for number in range(8))
        + " and 3 more"
    )


def test_packages_of_the_model_process_are_added() -> None:
    own = virtual_environments._base_requirements(
        [Requirement("Pandas==2"), Requirement("mlflow-skinny")], "3.12"
    )
    assert own == ["numpy", "orjson", "pyarrow"]
    own = virtual_environments._base_requirements([], "3.11")
    assert {"setuptools<81", f"mlflow=={version('mlflow')}"} < {*own}


# -- the operator's list of packages

WHEEL_OF_IDNA = "sha256:946d195a0d259cbba61165e88e65941f16e9b36ea6ddb97f00452bae8b1287d3"


def listed(folder: Path, *lines: str) -> Path:
    (folder / "packages.txt").write_text("\n".join(lines))
    return folder / "packages.txt"


@pytest.mark.anyio
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("digest", "fault"),
    [(WHEEL_OF_IDNA, ""), ("sha256:" + "0" * 64, "Hash mismatch")],
    ids=["right", "wrong"],
)
async def test_strict_environment_consists_of_listed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str, fault: str
) -> None:
    monkeypatch.setattr(virtual_environments, "_base_requirements", lambda *_: [])
    file = listed(tmp_path, "# the list", f"idna==3.10 \\\n    --hash={digest}", "")
    manager = Environments(tmp_path / "store", strict=True, packages=file)
    wanted = requirements.Needs(packages=[Requirement("idna>=3")])
    if fault:
        with pytest.raises(EnvironmentUnavailable, match=fault):
            await manager.interpreter(wanted)
        return
    python = await manager.interpreter(wanted)
    installed = {file.name for file in python.parents[1].glob("lib/*/site-packages/*.dist-info")}
    assert installed == {"idna-3.10.dist-info"}


@pytest.mark.anyio
async def test_strict_environment_needs_a_list(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnavailable, match="set SERVING_PACKAGES"):
        await Environments(tmp_path, strict=True).interpreter(requirements.Needs())


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "line",
    [
        "idna==3.10",
        f"idna>=3.10 {HASH}",
        f"idna {HASH}",
        f"idna==3.10,<4 {HASH}",
        f"idna==3.* {HASH}",
        "idna==3.10 --hash=md5:00",
        f"idna @ https://127.0.0.1/idna.whl {HASH}",
        f"-r more.txt {HASH}",
        "--index-url http://127.0.0.1",
    ],
)
def test_list_of_packages_has_exact_versions_and_hashes(tmp_path: Path, line: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match="SERVING_PACKAGES contains the entry"):
        package_list.read(listed(tmp_path, line))


def test_highest_matching_version_is_selected(tmp_path: Path) -> None:
    lines = [f"{name} {HASH}" for name in ("a==1", "a==2", "A==3", "b==1", 'c==1; python_version < "3"')]
    packages = package_list.read(listed(tmp_path, *lines))
    limits = [Requirement("a!=2"), Requirement("b")]
    selected = package_list.select(packages, [Requirement("a<3")], [Requirement("b")], limits, "3.11")
    assert selected == [lines[0], lines[3]]
    with pytest.raises(UntrustedArtifact, match="which is not in SERVING_PACKAGES"):
        package_list.select(packages, [Requirement("c")], [], [], "3.11")
    with pytest.raises(UntrustedArtifact, match="has no such version of a"):
        package_list.select(packages, [Requirement("a>3")], [], [], "3.11")
    with pytest.raises(EnvironmentUnavailable, match="lacks numpy, which model processes need"):
        package_list.select(packages, [], [Requirement("numpy")], [], "3.11")
