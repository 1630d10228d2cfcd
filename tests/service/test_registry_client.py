"""The registry client on SQLite: references, artifacts, and errors of the registry."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types import Schema

from serving.errors import ReferenceNotFound, RegistryUnavailable
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.settings.settings import Settings
from serving.telemetry.redaction import redact
from serving.version import Version
from tests.support.contracts import columns
from tests.support.registry import SCRIPTED_MODEL, Registry, quiet, save_scripted_model

pytestmark = pytest.mark.anyio

NAMES = ["iris", "my model", "o'brien", 'the "best"', "ирис", "iris_2", "IRIS"]


@pytest.fixture
def catalogue(registry: str) -> Registry:
    """Create a registry with four versions of iris without artifacts."""
    made = Registry(registry)
    for _ in range(4):
        made.register("iris", Path("/nowhere"))
    return made


@pytest.fixture
def client(registry: str) -> Iterator[RegistryClient]:
    with closing(RegistryClient(Settings(tracking_uri=registry))) as made:
        yield made


def anywhere(_: Path) -> None:
    """Allow artifacts to be in any folder."""


async def resolved(client: RegistryClient, uri: str) -> Version:
    version, _ = await client.resolve(Reference.parse(uri))
    return version


# -- references


async def test_stage_names_its_highest_version(client: RegistryClient, catalogue: Registry) -> None:
    for version in ("3", "2"):
        catalogue.promote("iris", version, archive=False)
    catalogue.promote("iris", "4", "Staging")
    result, rivals = await client.resolve(Reference.parse("models:/iris/Production"))
    assert (result.version, result.stage) == ("3", "Production")
    assert [rival.version for rival in rivals] == ["2"]
    assert (await resolved(client, "models:/iris/staging")).version == "4"
    assert (await resolved(client, "models:/iris/None")).version == "1"


async def test_highest_number_is_found_in_any_spelling(client: RegistryClient, catalogue: Registry) -> None:
    for _ in range(7):
        catalogue.register("iris", Path("/nowhere"))
    assert (await resolved(client, "models:/iris/latest")).version == "11"
    for version in ("9", "10"):
        catalogue.promote("iris", version, archive=False)
    assert (await resolved(client, "models:/iris/Production")).version == "10"


async def test_alias_names_its_current_version(client: RegistryClient, catalogue: Registry) -> None:
    for version in ("3", "1", "2"):
        catalogue.alias("iris", "champion", version)
        assert (await resolved(client, "models:/iris@champion")).version == version


async def test_number_names_its_version(client: RegistryClient, catalogue: Registry) -> None:
    for version in ("1", "4"):
        result = await resolved(client, f"models:/iris/{version}")
        assert (result.name, result.version, result.stage) == ("iris", version, None)


@pytest.mark.parametrize("name", NAMES)
async def test_models_of_any_name_are_found(client: RegistryClient, catalogue: Registry, name: str) -> None:
    other = Registry(catalogue.uri)
    with quiet():
        if name != "iris":
            other.client.create_registered_model(name)
        other.client.create_model_version(name, "/nowhere")
    for uri in (f"models:/{name}/latest", f"models:/{name}/None"):
        assert (await resolved(client, uri)).name == name


async def test_version_has_its_metadata(client: RegistryClient, catalogue: Registry, tmp_path: Path) -> None:
    with quiet(), mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(
            name="actor",
            python_model=SCRIPTED_MODEL,
            signature=ModelSignature(Schema(columns("x: double"))),
            pip_requirements=[],
            registered_model_name="actor",
        )
    catalogue.promote("actor", "1")
    catalogue.alias("actor", "champion", "1")
    catalogue.alias("actor", "best", "1")
    catalogue.client.set_model_version_tag("actor", "1", "team", "flowers")
    result = await client.complete(await resolved(client, "models:/actor/Production"))
    assert result.tags == {"team": "flowers"}
    assert (result.version, result.stage, result.aliases) == ("1", "Production", ("best", "champion"))
    assert (result.run_id, result.model_id) == (run.info.run_id, logged.model_id)
    assert result.source == f"models:/{logged.model_id}"
    folder = await client.download(result, tmp_path / "download", anywhere)
    assert (folder / "MLmodel").is_file()


async def test_logged_model_is_served_without_a_version(
    client: RegistryClient, registry: str, tmp_path: Path
) -> None:
    with quiet(), mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(
            name="actor",
            python_model=SCRIPTED_MODEL,
            signature=ModelSignature(Schema(columns("x: double"))),
            pip_requirements=[],
        )
    result = await client.complete(await resolved(client, f"models:/{logged.model_id}"))
    assert (result.version, result.stage, result.model_id, result.run_id) == (
        None,
        None,
        logged.model_id,
        run.info.run_id,
    )
    assert ((await client.download(result, tmp_path / "download", anywhere)) / "MLmodel").is_file()


async def test_artifacts_are_downloaded_unchanged(
    client: RegistryClient, catalogue: Registry, tmp_path: Path
) -> None:
    saved = save_scripted_model(tmp_path)
    catalogue.register("actor", saved)
    version = await client.complete(await resolved(client, "models:/actor/1"))
    folder = await client.download(version, tmp_path / "download", anywhere)
    assert folder != saved
    assert contents(folder) == contents(saved)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- invalid references


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("models:/rose/Production", "the registry has no version of a model 'rose'"),
        ("models:/rose/latest", "the registry has no version of a model 'rose'"),
        ("models:/rose@champion", "models:/rose@champion names nothing in the registry"),
        ("models:/rose/1", "models:/rose/1 names nothing in the registry"),
        ("models:/iris/Production", "no version of 'iris' is in stage Production"),
        ("models:/iris@champion", "models:/iris@champion names nothing in the registry"),
        ("models:/iris/9", "models:/iris/9 names nothing in the registry"),
        (f"models:/m-{'0' * 32}", f"models:/m-{'0' * 32} names nothing in the registry"),
        ("""models:/a'b"c/latest""", "models:/a'b\"c/latest names nothing in the registry"),
    ],
)
async def test_unresolvable_reference_is_reported(
    client: RegistryClient, catalogue: Registry, uri: str, said: str
) -> None:
    with pytest.raises(ReferenceNotFound) as missing:
        await resolved(client, uri)
    assert str(missing.value).startswith(said)
    assert "\n" not in str(missing.value)
    assert client.reachable is True


async def test_missing_artifacts_are_reported(
    client: RegistryClient, catalogue: Registry, tmp_path: Path
) -> None:
    version = await resolved(client, "models:/iris/1")
    with pytest.raises(RegistryUnavailable, match="the artifacts of iris version 1: .* No such file"):
        await client.download(version, tmp_path / "download", anywhere)


# -- unavailable registry


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Reserve a port without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_unreachable_server_is_reported_without_its_password(
    closed_port: int,
) -> None:
    uri = f"http://alice:hunter2@127.0.0.1:{closed_port}"
    with closing(RegistryClient(Settings(tracking_uri=uri))) as client:
        assert client.reachable is None
        for reference in ("models:/iris/Production", "models:/iris@champion", "models:/iris/1"):
            with pytest.raises(RegistryUnavailable, match=reference) as away:
                await resolved(client, reference)
            assert "hunter2" not in f"{away.value} {away.value.detail}"
            assert "Connection refused" in str(away.value)
            assert str(closed_port) not in str(away.value)
            assert str(closed_port) in away.value.detail
        assert client.reachable is False
        assert client.checked_at is None
        assert client.uri == f"http://***@127.0.0.1:{closed_port}"


async def test_invalid_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(os.urandom(4096))
    with closing(RegistryClient(Settings(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))) as client:
        with pytest.raises(RegistryUnavailable) as away:
            await resolved(client, "models:/iris/1")
        assert "\n" not in str(away.value)


async def test_time_of_the_last_successful_poll_is_recorded(
    client: RegistryClient, catalogue: Registry
) -> None:
    before = datetime.now(UTC)
    await resolved(client, "models:/iris/1")
    assert client.reachable is True
    assert client.checked_at
    assert before <= client.checked_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("http://alice:hunter2@mlflow:5000/path", "http://***@mlflow:5000/path"),
        ("http://alice@mlflow:5000", "http://***@mlflow:5000"),
        ("http://alice:hun@ter2@mlflow", "http://***@mlflow"),
        ("postgresql://alice:hunter2@db/mlflow", "postgresql://***@db/mlflow"),
        ("postgresql://alice:hun/ter2@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("postgresql://alice@srv:hun/ter2@srv.db/mlflow", "postgresql://***@srv.db/mlflow"),
        (
            "postgresql://db/mlflow?user=a&password=hunter2&x=1",
            "postgresql://db/mlflow?user=a&password=***&x=1",
        ),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("see http://a:b@c/d and http://e:f@g/h, or a@b", "see http://***@c/d and http://***@g/h, or a@b"),
    ],
)
async def test_passwords_are_never_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact(shown) == shown
    with closing(RegistryClient(Settings(tracking_uri=uri))) as client:
        assert client.uri == shown


@given(st.text("abc:@?=&%", min_size=1).filter(lambda text: not text.startswith("@")))
def test_no_part_of_a_password_is_shown(password: str) -> None:
    assert redact(f"http://alice:{password}@host/path") == "http://***@host/path"


async def test_separate_registry_precedes_the_tracking_server(tmp_path: Path, registry: str) -> None:
    settings: dict[str, Any] = {"tracking_uri": "http://tracking", "registry_uri": registry}
    with closing(RegistryClient(Settings(**settings))) as client:
        assert client.uri == registry


async def test_registry_duration_excludes_the_import_of_mlflow(
    client: RegistryClient, catalogue: Registry
) -> None:
    await resolved(client, "models:/iris/1")
    assert client.last_latency == 0
    await resolved(client, "models:/iris/1")
    assert client.last_latency > 0


async def test_registry_duration_includes_polls_only(client: RegistryClient, catalogue: Registry) -> None:
    """Ignore the duration of tag writes, which does not affect the poll interval."""
    version = await resolved(client, "models:/iris/1")
    await client.cursor(0.0)
    waited = client.last_latency
    assert waited > 0
    await client.write_tags(version, lambda _: {f"tag-{number}": "x" for number in range(5)})
    assert client.last_latency == waited
    await client.cursor(0.0)
    assert client.last_latency != waited
