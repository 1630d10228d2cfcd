"""Unity Catalog as the registry: a real service against a stand-in for its REST API."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from pydantic import ValidationError

from serving.errors import RegistryRejected
from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.registry.tag_writer import TagWriter
from serving.settings.settings import Settings, format_errors
from serving.version import Version
from tests.support.faulty_proxy import free_port
from tests.support.registry import save_scripted_model
from tests.support.service import Service, served, until
from tests.support.unity_catalog_server import TOKEN

NAME = "main.sales.actor"


class CatalogServer:
    """A process of the stand-in, and MLflow's client for it."""

    def __init__(self, folder: Path) -> None:
        self.url, self._folder = f"http://127.0.0.1:{free_port()}", folder
        script = Path(__file__).parents[1] / "support" / "unity_catalog_server.py"
        self.process = subprocess.Popen([sys.executable, script, self.url.rpartition(":")[2]])
        self.http = httpx.Client(base_url=self.url, timeout=60)
        until(self._responds)

    def _responds(self) -> bool:
        assert self.process.poll() is None
        with suppress(httpx.ConnectError):
            return self.http.get("/calls").is_success
        return False

    def add(self, name: str = NAME, **part: Any) -> str:
        """Register an actor as the next version; return its number."""
        folder = str(save_scripted_model(self._folder, **part))
        version: str = self.http.post("/versions", json={"name": name, "folder": folder}).json()["version"]
        return version

    def alias(self, version: str, alias: str = "champion") -> None:
        """Move an alias to a version, as a user with MLflow's client does."""
        self._call("POST", "registered-models/alias", name=NAME, alias=alias, version=version)

    def tag(self, version: str, key: str, value: str) -> None:
        self._call("POST", "model-versions/set-tag", name=NAME, version=version, key=key, value=value)

    def tags(self, version: str) -> dict[str, str]:
        found = self._call("GET", "model-versions/get", name=NAME, version=version)["model_version"]
        return {tag["key"]: tag["value"] for tag in found["tags"]}

    def set_read_only(self, value: bool, name: str = NAME) -> None:
        """Deny or allow writing the tags of a model."""
        self.http.post("/read-only", json={"name": name, "value": value})

    def interrupt(self, each: int) -> None:
        """End the next responses with each file early."""
        self.http.post("/interruptions", json={"each": each})

    def _call(self, method: str, path: str, **body: str) -> dict[str, Any]:
        response = self.http.request(
            method,
            f"/api/2.0/mlflow/unity-catalog/{path}",
            json=body,
            headers={"authorization": f"Bearer {TOKEN}"},
        )
        result: dict[str, Any] = response.raise_for_status().json()
        return result


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CatalogServer]:
    server = CatalogServer(tmp_path_factory.mktemp("catalog"))
    yield server
    server.http.close()
    server.process.terminate()
    server.process.wait()


def access(catalog: CatalogServer, folder: Path) -> dict[str, str]:
    """Return the variables with which MLflow's client finds and may use the stand-in."""
    profile = folder / "databrickscfg"
    profile.write_text(f"[front]\nhost = {catalog.url}\ntoken = {TOKEN}\n")
    return {
        "_mlflow_registry_uri": "databricks-uc://front",
        "_databricks_config_file": str(profile),
        "_mlflow_uc_oss_token": TOKEN,
    }


@pytest.fixture(scope="module")
def service(catalog: CatalogServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    for factor in (1, 2, 3):
        catalog.add(factor=factor)
    catalog.alias("1")
    references = f"models:/{NAME}@champion,models:/{NAME}/latest,models:/{NAME}/2"
    database = f"sqlite:///{folder}/mlflow.db"
    with served(database, folder, models=references, **access(catalog, folder)) as running:
        running.until_ready()
        yield running


def state(service: Service, uri: str) -> dict[str, Any]:
    found: dict[str, Any] = next(model for model in service.ready()["models"] if model["uri"] == uri)
    return found


def test_alias_version_and_latest_are_served(service: Service) -> None:
    versions = {model["uri"]: model["version"] for model in service.ready()["models"]}
    assert versions == {
        f"models:/{NAME}@champion": "1",
        f"models:/{NAME}/latest": "3",
        f"models:/{NAME}/2": "2",
    }
    live = state(service, f"models:/{NAME}@champion")
    assert (live["aliases"], live["stage"]) == (["champion"], None)
    assert live["source"].startswith("dbfs:/")


def test_names_with_dots_work_in_urls_metrics_and_openapi(service: Service) -> None:
    response = service.client.post(f"/models/{NAME}/predict", json={"x": 3.0})
    assert response.json() == {"prediction": 3.0, "model": {"name": NAME, "version": "1"}}
    assert response.headers["x-model-name"] == NAME
    pinned = service.client.post(f"/models/{NAME}/versions/2/predict", json={"x": 3.0})
    assert pinned.json()["prediction"] == 6.0
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [3.0]}]}
    assert service.client.post(f"/v2/models/{NAME}/infer", json=body).json()["model_name"] == NAME
    by_reference = service.client.post(f"/invocations?model=models:/{NAME}/2", json={"inputs": {"x": [3.0]}})
    assert by_reference.json() == {"predictions": [6.0]}
    assert service.client.get(f"/models/{NAME}").json()["name"] == NAME
    labels = f'{{model="{NAME}",required="true",uri="models:/{NAME}@champion"}}'
    assert service.metrics()[f"serving_model_ready{labels}"] == 1
    document = service.client.get("/openapi.json").json()
    assert f"/models/{NAME}/predict" in document["paths"]
    # The OpenAPI specification allows these characters in the names of components.
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in document["components"]["schemas"])


def test_promotion_by_alias_is_followed_and_written_to_tags(service: Service, catalog: CatalogServer) -> None:
    champion = f"models:/{NAME}@champion"
    until(lambda: catalog.tags("1").get("serving_state") == "live")
    catalog.alias("2")
    until(lambda: state(service, champion)["version"] == "2")
    assert service.client.post(f"/models/{NAME}/predict", json={"x": 3.0}).json()["prediction"] == 6.0
    until(lambda: catalog.tags("1").get("serving_state") == "superseded")
    assert catalog.tags("1")["serving_reason"] == f"{NAME} version 2 went live"
    until(lambda: champion in json.loads(catalog.tags("2").get("serving_live", "{}")))
    assert not [key for key in catalog.tags("2") if "." in key]
    catalog.alias("1")
    until(lambda: state(service, champion)["version"] == "1")
    until(lambda: champion in json.loads(catalog.tags("1").get("serving_live", "{}")))
    until(lambda: champion not in json.loads(catalog.tags("2").get("serving_live", "{}")))


def test_denied_tags_are_a_warning_until_they_can_be_written(
    service: Service, catalog: CatalogServer
) -> None:
    champion = f"models:/{NAME}@champion"
    catalog.set_read_only(True)
    catalog.alias("2")
    until(lambda: state(service, champion)["version"] == "2")

    def warnings() -> list[str]:
        return [text for text in state(service, champion)["warnings"] if "cannot be written" in text]

    until(warnings)
    (warning,) = warnings()
    assert "User does not have APPLY TAG" in warning
    assert "permission to edit" in warning
    metric = f'serving_model_tags_writable{{model="{NAME}",uri="{champion}"}}'
    assert service.metrics()[metric] == 0
    shown = service.client.get("/status").json()["models"][0]["warnings"]
    assert shown.count(warning) == 1
    catalog.set_read_only(False)
    until(lambda: not warnings())
    assert service.metrics()[metric] == 1
    until(lambda: champion in json.loads(catalog.tags("2").get("serving_live", "{}")))


def test_rejected_version_names_its_reason_in_tags(service: Service, catalog: CatalogServer) -> None:
    champion = f"models:/{NAME}@champion"
    before = state(service, champion)["version"]
    broken = catalog.add(on_load="raise:no_weights", example=None)
    catalog.alias(broken)
    until(lambda: catalog.tags(broken).get("serving_state") == "rejected")
    assert state(service, champion)["version"] == before
    # A tag of a person, under a name that Databricks allows, has its effect.
    breaking = catalog.add(
        inputs="x: double, y: double", factor=1, example=pd.DataFrame({"x": [1.0], "y": [2.0]})
    )
    catalog.alias(breaking)
    until(lambda: "would break clients" in catalog.tags(breaking).get("serving_reason", ""))
    catalog.tag(breaking, "serving_allow_breaking", "true")
    until(lambda: state(service, champion)["version"] == breaking)


def test_open_source_catalog_serves_latest_without_tags(
    service: Service, catalog: CatalogServer, tmp_path: Path
) -> None:
    name = "unity.default.actor"
    catalog.add(name, factor=1)
    catalog.add(name, factor=2)
    variables = access(catalog, tmp_path) | {"_mlflow_registry_uri": f"uc:{catalog.url}"}
    references = f"models:/{name}/latest,models:/{name}/1"
    with served(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, models=references, **variables) as running:
        running.until_ready()
        assert [model["version"] for model in running.ready()["models"]] == ["2", "1"]
        promoted = catalog.add(name, factor=3)
        until(lambda: running.ready()["models"][0]["version"] == promoted)
        assert running.client.post(f"/models/{name}/predict", json={"x": 2.0}).json()["prediction"] == 6.0
        assert not [line for line in running.lines() if "tags" in line["event"]]


@pytest.mark.anyio
async def test_read_only_model_does_not_block_tags_of_others(
    catalog: CatalogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in access(catalog, tmp_path).items():
        monkeypatch.setenv(name[1:].upper(), value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    names = ("main.sales.denied", "main.sales.other")
    references = [Reference.parse(f"models:/{name}/{catalog.add(name)}") for name in names]
    registry = RegistryClient(Settings(models=",".join(map(str, references))))
    tag_writer = TagWriter(registry)
    catalog.set_read_only(True, names[0])
    for reference in references:
        version, _ = await registry.resolve(reference)
        tag_writer.live(str(reference), version, "")
    await tag_writer.flush()
    assert "PERMISSION_DENIED" in (tag_writer.failures.warning(names[0]) or "")
    assert tag_writer.failures.warning(names[1]) is None
    other, _ = await registry.resolve(references[1])
    assert other.tags["serving.state"] == "live"
    catalog.set_read_only(False, names[0])
    async with asyncio.timeout(60):
        while tag_writer.failures.warning(names[0]):
            await tag_writer.flush()
            await asyncio.sleep(0)
    denied, _ = await registry.resolve(references[0])
    assert denied.tags["serving.state"] == "live"
    registry.close()


@pytest.fixture
def registry_client(
    catalog: CatalogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegistryClient]:
    for name, value in access(catalog, tmp_path).items():
        monkeypatch.setenv(name[1:].upper(), value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with closing(RegistryClient(Settings(models="models:/main.sales.client/1"))) as client:
        yield client


@pytest.mark.anyio
async def test_interrupted_download_is_repeated(
    catalog: CatalogServer, registry_client: RegistryClient, tmp_path: Path
) -> None:
    number = catalog.add("main.sales.interrupted")
    version, _ = await registry_client.resolve(Reference.parse(f"models:/main.sales.interrupted/{number}"))
    version = await registry_client.complete(version)
    expected = await downloaded(registry_client, version, tmp_path / "whole")
    # MLflow itself tries each file a second time, with new credentials.
    catalog.interrupt(each=3)
    assert await downloaded(registry_client, version, tmp_path / "interrupted") == expected
    uri = f"models:/main.sales.interrupted/{number}/MLmodel"
    file = await registry_client.download_file("a file", uri, version.location, tmp_path / "file")
    assert file.read_bytes() == expected["MLmodel"]


async def downloaded(client: RegistryClient, version: Version, folder: Path) -> dict[str, bytes]:
    """Download a version, and return its files by their relative paths."""
    path = await client.download(version, folder, lambda _: None)
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.anyio
async def test_tag_that_is_too_long_is_not_cut(
    catalog: CatalogServer, registry_client: RegistryClient
) -> None:
    number = catalog.add("main.sales.client")
    version, _ = await registry_client.resolve(Reference.parse(f"models:/main.sales.client/{number}"))
    with pytest.raises(RegistryRejected, match="serving.approval cannot be written: it has 1001 characters"):
        await registry_client.write_tags(version, lambda _: {"serving.approval": "1" * 1001})
    tag_writer = TagWriter(registry_client)
    tag_writer.set_tags(version, "evidence", lambda _: {"serving.evaluation": "1" * 1001})
    for index in range(16):
        tag_writer.live(f"models:/main.sales.client@reference_number_{index}", version, "")
    await tag_writer.flush()
    tags = (await registry_client.resolve(Reference.parse(f"models:/main.sales.client/{number}")))[0].tags
    assert len(json.loads(tags["serving.live"])) > 10
    assert not {"serving.approval", "serving.evaluation"} & {*tags}
    other = catalog.add("main.sales.others")
    reference = Reference.parse(f"models:/main.sales.others/{other}")
    tag_writer.live(str(reference), (await registry_client.resolve(reference))[0], "")
    await tag_writer.flush()
    assert (await registry_client.resolve(reference))[0].tags["serving.state"] == "live"


# -- references that Unity Catalog does not have


@pytest.mark.parametrize(
    ("registry", "reference", "message"),
    [
        ("databricks-uc", f"models:/{NAME}/Production", f"use an alias, as in models:/{NAME}@production"),
        ("databricks-uc://profile", f"models:/{NAME}/staging", "Unity Catalog has no stages"),
        ("databricks-uc", "models:/actor@champion", "write models:/catalog.schema.name@alias"),
        ("databricks-uc", "models:/main..actor@champion", "names have three parts"),
        ("uc:http://127.0.0.1:8080", f"models:/{NAME}/Production", f"write models:/{NAME}/latest"),
        ("uc:http://127.0.0.1:8080", f"models:/{NAME}@champion", "open-source Unity Catalog has no aliases"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", ["models", "shadow", "on_demand"])
def test_unsupported_reference_aborts_the_start(
    registry: str, reference: str, message: str, setting: str
) -> None:
    values: dict[str, Any] = {"models": f"models:/{NAME}/1", setting: reference}
    with pytest.raises(ValidationError) as caught:
        Settings(registry_uri=registry, **values)
    (line,) = format_errors(caught.value)
    assert line.startswith(f"SERVING_{setting.upper()}: '{reference}'")
    assert message in line


@pytest.mark.parametrize(
    ("tracking", "registry", "catalog"),
    [
        ("databricks", None, "databricks-uc"),
        ("databricks://profile", None, "databricks-uc"),
        ("databricks", "databricks", None),
        ("http://mlflow", "uc:http://catalog", "uc"),
        ("http://mlflow", None, None),
        ("sqlite:///mlflow.db", "databricks-uc://profile", "databricks-uc"),
    ],
)
def test_registry_kind_follows_from_both_uris(
    tracking: str, registry: str | None, catalog: str | None
) -> None:
    assert Settings(models="models:/a.b.c/1", tracking_uri=tracking, registry_uri=registry).catalog == catalog
