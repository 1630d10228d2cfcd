"""The policy rejects sources, files and, in strict mode, code before anything is loaded."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

from serving.processes.launcher import Launcher, LauncherOptions
from serving.processes.replica import Replica
from serving.promotion_errors import UntrustedArtifact
from serving.registry.artifact_policy import ArtifactPolicy, is_within
from serving.settings.groups import ArtifactPolicySettings
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, quiet, save_scripted_model
from tests.support.service import served

FRAME = pd.DataFrame({"x": [1.0, 2.0, 3.0]})
LINE = LinearRegression().fit(FRAME, FRAME["x"] * 2)


def noted(folder: Path) -> dict[str, Any]:
    """Return a model part that writes a marker file when it is loaded."""
    return {"on_load": f"note:{folder / 'loaded'}"}


def saved(folder: Path, model: Any = LINE, **options: Any) -> Path:
    """Save a scikit-learn model in a new folder."""
    path = folder / f"line-{len([*folder.iterdir()])}"
    signature = infer_signature(FRAME, model.predict(FRAME))
    with quiet():
        mlflow.sklearn.save_model(model, path, signature=signature, pip_requirements=[], **options)
    return path


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model with another MLmodel file."""
    described = yaml.safe_load((folder / "MLmodel").read_text())
    change(described)
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    return folder


@pytest.fixture(scope="module")
def home(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(new_registry(tmp_path_factory.mktemp("chain")))


@pytest.fixture(scope="module")
def strict(home: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Run a service in strict mode that allows one artifact source; a linear model is live."""
    folder = tmp_path_factory.mktemp("strict")
    home.promote("line", home.register("line", saved(home.folder)))
    rules = {
        "strict_artifacts": True,
        "allowed_sources": f"s3://models/,{home.folder}/",
        "trusted_types": "numpy.sqrt",
    }
    (folder / "packages.txt").write_text(f"idna==3.10 --hash=sha256:{'0' * 64}")
    rules |= {"environments": True, "packages": folder / "packages.txt"}
    models = {"models": "models:/line/Production"}
    with served(home.uri, folder, **models, **rules, poll_seconds=0.1) as service:
        service.until_ready()
        yield Model("line", service, home)


@pytest.fixture(autouse=True)
def all_is_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Verify after every test that the same version is live."""
    yield
    if "strict" in request.fixturenames:
        model: Model = request.getfixturevalue("strict")
        assert model.predict(4.0).json()["prediction"] == pytest.approx(8.0)
        assert model.state["version"] == "1"


def refused(model: Model, folder: Path) -> str:
    """Promote a saved model, return the reason for its rejection, and restore the earlier version."""
    version = model.registry.register("line", folder)
    model.promote(version)
    model.until(lambda told: (told["candidate"] or {}).get("version") == version)
    reason = model.until_tagged(version, "rejected")["reason"]
    model.promote("1")
    model.until(lambda told: told["candidate"] is None)
    return reason


def test_row_36_source_outside_the_allow_list_is_rejected(strict: Model, tmp_path: Path) -> None:
    assert "SERVING_ALLOWED_SOURCES" in refused(strict, saved(tmp_path))
    assert "SERVING_ALLOWED_SOURCES" in refused(strict, Path(f"{strict.registry.folder}/../elsewhere"))


@pytest.mark.parametrize("form", ["pickle", "cloudpickle"])
def test_row_36_strict_mode_rejects_a_pickle(strict: Model, form: str) -> None:
    assert form in refused(strict, saved(strict.registry.folder, serialization_format=form))


def test_row_36_strict_mode_rejects_code(strict: Model, tmp_path: Path) -> None:
    reason = refused(strict, save_scripted_model(strict.registry.folder, **noted(tmp_path)))
    assert "it is loaded by mlflow.pyfunc" in reason
    assert not (tmp_path / "loaded").exists()


def test_row_36_strict_mode_rejects_a_renamed_pickle(strict: Model) -> None:
    folder = saved(strict.registry.folder)
    pickled = saved(strict.registry.folder, serialization_format="pickle")
    shutil.copy(pickled / "model.pkl", folder / "weights.json")
    assert "weights.json" in refused(strict, folder)


def test_row_36_untrusted_types_are_rejected(strict: Model) -> None:
    folder = edited(
        saved(strict.registry.folder),
        lambda described: described["flavors"]["sklearn"].update(skops_trusted_types=["posix.system"]),
    )
    assert "posix.system" in refused(strict, folder)


@pytest.mark.parametrize("target", ["/etc/passwd", "model.skops", "."])
def test_row_36_links_in_artifacts_are_rejected(strict: Model, target: str) -> None:
    folder = saved(strict.registry.folder)
    (folder / "extra").symlink_to(target)
    assert "extra among its artifacts is a link" in refused(strict, folder)


@pytest.mark.parametrize("path", ["/etc/passwd", "../model.skops", "a/../../b", "..\\b"])
def test_row_36_path_outside_the_artifacts_is_rejected(strict: Model, path: str) -> None:
    folder = edited(
        saved(strict.registry.folder),
        lambda described: described["flavors"]["python_function"].update(model_path=path),
    )
    assert "outside its folder" in refused(strict, folder)


def test_trusted_model_goes_live_in_strict_mode(strict: Model) -> None:
    assert strict.service.client.post("/predict", json={"x": 1.0}).json()["prediction"] == pytest.approx(2.0)


@pytest.mark.anyio
async def test_strict_mode_prevents_unpickling_in_processes(tmp_path: Path) -> None:
    launcher = Launcher(LauncherOptions(strict=True))
    launcher.start()
    try:
        replica = await Replica.start(launcher, saved(tmp_path), 60)
        replica.kill()
        with pytest.raises(Exception, match="strict mode does not allow pickles that refer to a class"):
            await Replica.start(launcher, saved(tmp_path, serialization_format="pickle"), 60)
    finally:
        await launcher.aclose()


def requiring(folder: Path, name: str, text: str) -> Path:
    """Replace a file of a saved model that lists packages."""
    (folder / name).write_text(text)
    return folder


def wheel_that_runs_code(folder: Path) -> tuple[Path, Path]:
    """Make a wheel whose `.pth` file leaves a note, and return it and the note."""
    path, note = folder / "helper-1-py3-none-any.whl", folder / "ran"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("helper.pth", f"import pathlib; pathlib.Path({str(note)!r}).touch()")
        archive.writestr("helper-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: helper\nVersion: 1\n")
        archive.writestr(
            "helper-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("helper-1.dist-info/RECORD", "")
    return path, note


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("requirements.txt", "helper @ file://{wheel}", "strict mode installs nothing by its URL"),
        ("requirements.txt", "helper @ file://localhost{wheel} ; python_version > '3'", "by its URL"),
        ("requirements.txt", "helper @ https://127.0.0.1:9/helper-1-py3-none-any.whl", "by its URL"),
        ("requirements.txt", "helper @ git+https://127.0.0.1:9/helper", "by its URL"),
        ("requirements.txt", "-c limits.txt\nidna", "by its URL"),
        ("requirements.txt", "{wheel}", "is not a requirement"),
        ("requirements.txt", "-e {wheel}", "is an option"),
        ("requirements.txt", "--find-links {wheel}", "is an option"),
        ("requirements.txt", "helper @ file://${{HOME}}/x.whl", "environment variable"),
        ("requirements.txt", "helper==1", "which is not in SERVING_PACKAGES"),
        ("requirements.txt", "idna==3.9", "SERVING_PACKAGES has no such version"),
        ("python_env.yaml", "dependencies: ['helper @ file://{wheel}']", "by its URL"),
        ("python_env.yaml", "build_dependencies: ['helper @ file://{wheel}']", "no such line"),
        ("conda.yaml", "dependencies: [{{pip: ['helper @ file://{wheel}']}}]", "no such line"),
        ("conda.yaml", "dependencies: [{{pip: ['--index-url http://127.0.0.1:9']}}]", "no such line"),
        ("conda.yaml", "{deep}", "deeper"),
    ],
)
def test_row_39_strict_mode_rejects_packages_by_url(
    strict: Model, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    wheel, note = wheel_that_runs_code(tmp_path)
    folder = saved(strict.registry.folder)
    (folder / "limits.txt").write_text(f"helper @ file://{wheel}")
    text = text.format(wheel=wheel, deep="[" * 100_000)
    assert expected in refused(strict, requiring(folder, name, text))
    assert not note.exists()


# -- unit tests


@pytest.mark.parametrize(
    ("location", "allowed", "expected"),
    [
        ("s3://models/iris/1", "s3://models/", True),
        ("s3://models/iris/1", "s3://models", True),
        ("S3://MODELS/iris/1", "s3://models/", True),
        ("s3://models-of-others/iris", "s3://models", False),
        ("s3://models/iris-2/1", "s3://models/iris", False),
        ("s3://models/iris/../../others", "s3://models/iris", False),
        ("s3://models/iris/%2e%2e/others", "s3://models/iris", False),
        ("s3://models/iris/%252e%252e/others", "s3://models/iris", False),
        ("https://models/iris", "s3://models", False),
        ("/models/iris", "/models", True),
        ("file:///models/iris", "/models", True),
        ("/models//./iris", "/models/iris", True),
        ("/models/..\\iris", "/models", False),
        ("mlflow-artifacts:/1/models/m-1/artifacts", "mlflow-artifacts:/", True),
        ("s3://user@models/iris", "s3://models", False),
    ],
)
def test_is_within_compares_locations(location: str, allowed: str, expected: bool) -> None:
    assert is_within(location, allowed) is expected


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described.update(flavors=None),
        lambda described: described["flavors"].pop("sklearn"),
        lambda described: described["flavors"]["python_function"].update(code="code"),
        lambda described: described["flavors"]["sklearn"].pop("serialization_format"),
        lambda described: described["flavors"]["python_function"].update(loader_module="os"),
        lambda described: described["flavors"]["sklearn"].update(model_class="os.system"),
        lambda described: described["flavors"]["python_function"].update(predict_fn="__reduce__"),
        lambda described: described["flavors"]["python_function"].update(streamable=True),
        lambda described: described["flavors"].update(
            onnx={"providers": [["TensorrtExecutionProvider", {}]]},
            python_function={"loader_module": "mlflow.onnx"},
        ),
        lambda described: described["flavors"].update(
            onnx={"onnx_session_options": {"extra_session_config": {"a": "b"}}},
            python_function={"loader_module": "mlflow.onnx"},
        ),
    ],
)
def test_strict_mode_rejects_unknown_metadata(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = saved(tmp_path)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    policy = ArtifactPolicy(ArtifactPolicySettings(strict_artifacts=True))
    policy.check_model(folder, described)
    change(described)
    with pytest.raises(UntrustedArtifact):
        policy.check_model(folder, described)
