"""Registries on MariaDB and PostgreSQL, and artifacts in a bucket, through real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from serving.errors import ArtifactsMissing, RegistryDenied, RegistryRejected, RegistryUnavailable
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.registry.mlflow_client import with_driver
from serving.settings.settings import Settings
from serving.version import Version
from tests.support.faulty_proxy import free_port
from tests.support.registry import quiet, save_scripted_model
from tests.support.service import served, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def mariadb() -> Iterator[str]:
    """Start a MariaDB without a password; yield the URI of its database, without a driver."""
    program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
    port, user = free_port(), ["--user=mysql"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="mariadb-") as folder, ExitStack() as stack:
        data = f"{folder}/data"
        if user:
            shutil.chown(folder, "mysql", "mysql")
        install = [
            "mariadb-install-db",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            *user,
        ]
        subprocess.run([*install, "--skip-test-db"], check=True, capture_output=True)
        options = [f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", *user]
        options += [f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        process = subprocess.Popen([program, "--no-defaults", *options], stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        client = ["mariadb", f"--socket={folder}/socket", "--user=root", "--execute"]
        until(
            lambda: not subprocess.run([*client, "SELECT 1"], capture_output=True, check=False).returncode,
            0.2,
        )
        setup = "CREATE DATABASE mlflow; CREATE USER me@'127.0.0.1'; GRANT ALL ON mlflow.* TO me@'127.0.0.1'"
        subprocess.run([*client, setup], check=True, capture_output=True)
        yield f"mysql://me@127.0.0.1:{port}/mlflow"


async def live_version(uri: str) -> str | None:
    """Return the version that is promoted in a new registry at `uri`, as the service resolves it."""
    with quiet(), closing(RegistryClient(Settings(tracking_uri=uri))) as client:
        version, _ = await client.resolve(Reference.parse("models:/iris/Production"))
        await client.write_tags(version, lambda _: {"serving.state": "live"})
        return version.version


def promoted(uri: str) -> None:
    """Create a registry and promote a version in it."""
    with quiet():
        registry = MlflowClient(with_driver(uri), with_driver(uri))
        registry.create_registered_model("iris")
        for _ in range(2):
            version = registry.create_model_version("iris", "/nowhere").version
            registry.transition_model_version_stage("iris", version, "Production", True)


async def test_registry_on_mariadb_with_each_form_of_its_uri(mariadb: str) -> None:
    promoted(mariadb)
    assert await live_version(mariadb) == "2"
    assert await live_version(mariadb.replace("mysql:", "mysql+pymysql:")) == "2"


async def test_registry_on_postgresql_with_each_form_of_its_uri(postgres: Any) -> None:
    uri = postgres.create("registry_forms")
    promoted(uri)
    for scheme in ("postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
        assert await live_version(uri.replace("postgresql:", f"{scheme}:")) == "2"


@pytest.mark.parametrize(
    ("changed", "kind", "cause"),
    [
        ("serving@", RegistryDenied, 'role ".*" does not exist'),
        ("/absent", RegistryRejected, 'database ".*" does not exist'),
        ("127.0.0.1", RegistryUnavailable, "could not translate host name"),
    ],
)
async def test_failure_of_postgresql_keeps_its_cause(
    postgres: Any, changed: str, kind: type[RegistryUnavailable], cause: str
) -> None:
    uri = postgres.url("absent" if changed == "/absent" else "postgres")
    uri = uri.replace("serving@", "stranger@") if changed == "serving@" else uri
    uri = uri.replace("127.0.0.1", "db.internal.invalid") if changed == "127.0.0.1" else uri
    await fails(uri, kind, cause.replace('".*"', "'…'"))


async def test_unknown_user_of_mariadb_is_denied(mariadb: str) -> None:
    await fails(mariadb.replace("//me@", "//stranger:x@"), RegistryDenied, "Access denied for user '…'@'…'")


async def fails(uri: str, kind: type[RegistryUnavailable], cause: str) -> None:
    """Check that a poll of the registry at `uri` fails for this cause, without any part of the URI."""
    with closing(RegistryClient(Settings(tracking_uri=uri))) as client:
        with pytest.raises(RegistryUnavailable) as failed:
            await client.resolve(Reference.parse("models:/iris/Production"))
        assert client.state == kind.state
    message = str(failed.value)
    assert type(failed.value) is kind
    assert cause in message
    assert not [part for part in ("127.0.0.1", "internal", "stranger", "absent") if part in message]


async def test_missing_bucket_is_not_a_wrong_address_of_the_registry(
    bucket: str, registry: str, tmp_path: Path
) -> None:
    error = await download_error("s3://missing/iris", registry, tmp_path)
    assert type(error) is ArtifactsMissing
    assert "The specified bucket does not exist" in str(error)
    assert "MLFLOW_TRACKING_URI" not in str(error)


async def test_missing_credentials_of_a_bucket_are_named(
    bucket: str, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from mlflow.store.artifact import s3_artifact_repo

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    error = await download_error(f"{bucket}/iris", registry, tmp_path)
    assert type(error) is RegistryDenied
    assert "Unable to locate credentials; give the service valid credentials" in str(error)


async def download_error(location: str, registry: str, folder: Path) -> RegistryUnavailable:
    """Return the error of a download from a bucket."""
    version = Version(name="iris", version="1", location=location, source=location)
    with closing(RegistryClient(Settings(tracking_uri=registry))) as client:
        with pytest.raises(RegistryUnavailable) as failed:
            await client.download(version, folder / "new", lambda _: None)
        return failed.value


def test_version_in_a_bucket_goes_live(bucket: str, registry: str, tmp_path: Path) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = f"{bucket}/doubling"
    get_artifact_repository(location).log_artifacts(str(save_scripted_model(tmp_path, factor=2.0)))
    with quiet():
        client = MlflowClient(registry, registry)
        client.create_registered_model("doubling")
        version = client.create_model_version("doubling", location).version
    with served(registry, tmp_path, models=f"models:/doubling/{version}") as service:
        service.until_ready()
        response = service.client.post("/predict", json={"x": 3.0})
        assert response.json()["prediction"] == 6.0
