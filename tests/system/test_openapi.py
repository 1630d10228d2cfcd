"""Clients, tests and pages that are generated from `/openapi.json`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from benchmarks.peers.environments import FOLDER, environment
from tests.service.test_http_service import ROW, log_iris
from tests.support.browser import CHROMIUM
from tests.support.registry import NewRegistry, Registry, quiet
from tests.support.sample_models import sample_models
from tests.support.service import FOR_SKLEARN, ROOT, SELDOM, Service, served

CLIENTS = Path(__file__).parents[1] / "support" / "clients"
HOUSE = sample_models()["pipeline"].row


@pytest.fixture(scope="module")
def service(
    new_registry: NewRegistry, sample_model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Start a service of a classifier, a mixed pipeline, and a model with a parameter."""
    home = tmp_path_factory.mktemp("openapi")
    registry = Registry(new_registry(home))
    with quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        log_iris(registry)
    for name in ("pipeline", "texts"):
        registry.promote(name, registry.register(name, sample_model_folders[name]))
    models = ",".join(f"models:/{name}/Production" for name in ("iris", "pipeline", "texts"))
    with served(registry.uri, home, models=models, preload=FOR_SKLEARN, poll_seconds=SELDOM) as running:
        running.until_ready()
        yield running


def run(client: str, requirements: list[str], *command: str, **more: Any) -> str:
    """Run a program in the environment of a client, and return its output."""
    python = environment(FOLDER.parent / "clients", client, requirements)
    program, *arguments = command
    path = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    env = os.environ | path | more.pop("env", {})
    done = subprocess.run(
        [str(python.with_name(program)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        **more,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_generated_client_works_without_edits(service: Service, tmp_path: Path) -> None:
    requirements = ["openapi-python-client==0.29.1"]
    url = f"{service.url}/openapi.json"
    generate = ["openapi-python-client", "generate", "--url", url, "--output-path", str(tmp_path / "made")]
    config = str(CLIENTS / "openapi_python_client.yaml")
    run("openapi-python-client", requirements, *generate, "--config", config, "--fail-on-warning")
    arguments = json.dumps({"url": service.url, "row": ROW, "house": HOUSE})
    env = {"PYTHONPATH": str(tmp_path / "made")}
    script = str(CLIENTS / "generated.py")
    output = json.loads(run("openapi-python-client", requirements, "python", script, arguments, env=env))
    response = service.client.post("/predict", json=ROW)
    assert output["one"] == response.json()
    assert output["version"] == response.headers["X-Model-Version"]
    assert output["many"]["predictions"][1] == output["many"]["predictions"][0]
    assert (
        output["house"]["prediction"]
        == service.client.post("/models/pipeline/predict", json=HOUSE).json()["prediction"]
    )
    assert output["times"] == "ABAB"
    assert output["ready"] == "models:/iris/Production"
    assert output["fault"] == [422, "sepal_length"]


@pytest.mark.timeout(600)  # 200 cases for each operation take two minutes
def test_schemathesis_finds_no_failure(service: Service) -> None:
    run(
        "schemathesis",
        ["schemathesis==4.32.5"],
        "st",
        "--config-file",
        str(CLIENTS / "schemathesis.toml"),
        "run",
        f"{service.url}/openapi.json",
        "--max-examples=200",
        "--phases=examples,coverage,fuzzing",
        "--seed=1",
        "--workers=1",
        "--continue-on-failure",
        cwd=service.env["SERVING_STORE_DIR"],
        env={"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(CLIENTS)},
    )
    assert service.client.get("/health").status_code == 200
    assert service.client.post("/predict", json=ROW).json()["label"] == "setosa"


TUTORIAL = (ROOT / "docs" / "tutorials" / "client.md").read_text()
SNIPPETS = dict(re.findall(r"```(python|js)\n(.*?)```", TUTORIAL, re.DOTALL))


def test_python_of_the_tutorial_works(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    exec(SNIPPETS["python"].replace("http://127.0.0.1:8000", service.url), {})
    assert capsys.readouterr().out == "setosa by version 1\n"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_javascript_of_the_tutorial_works(service: Service, browser: Browser) -> None:
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(f"{service.url}/docs")
    page.evaluate("async () => {" + SNIPPETS["js"] + "}")
    page.close()
    assert "setosa by version 1" in messages


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_row_59_docs_work_with_the_content_security_policy(service: Service, browser: Browser) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(f"{service.url}/docs")
    operation = page.locator("#operations-iris-predict")
    operation.locator("button.opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    response_body = operation.locator(".live-responses-table .response-col_description code").first
    expect(response_body).to_contain_text("setosa")
    page.close()
    assert complaints == []
    assert {host for host in hosts if host} == {urlsplit(service.url).netloc}


def test_row_59_pages_have_security_headers(service: Service) -> None:
    pages = [service.client.get(path) for path in ("/", "/docs")]
    for page in pages:
        assert page.headers["content-type"].startswith("text/html")
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "script-src 'self';" in page.headers["content-security-policy"]
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert not re.findall(r"<script(?![^>]*src=)|https?://| on\w+=|<style", page.text)


def test_64_bit_integers_keep_their_bounds(service: Service) -> None:
    rooms = service.client.get("/openapi.json").json()["components"]["schemas"]["PipelineRow"]["properties"][
        "rooms"
    ]
    assert (rooms["minimum"], rooms["maximum"]) == (-(2**63), 2**63 - 1)


def test_path_parameters_exclude_control_characters(service: Service) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    schemas = {
        (path, parameter["name"]): parameter["schema"]
        for path, operations in paths.items()
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "path"
    }
    assert {name for _, name in schemas} == {"name", "version", "label"}
    assert [key for key, schema in schemas.items() if "pattern" not in schema] == []
