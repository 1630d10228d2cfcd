"""Fixtures of all tests: fast registries, servers and browsers.

In CI a skipped test is a failure, unless it is marked as optional.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Tests ignore a developer's own settings. MLflow reads some when it is imported.
for _name in [name for name in os.environ if name.startswith(("MLFLOW_", "SERVING_"))]:
    del os.environ[_name]
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# The duration of an example depends on the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=100_000, deadline=None)
hypothesis.settings.load_profile("fuzz" if os.environ.get("FUZZ") else "untimed")

# The service's registry client sets these to limit the duration of its calls.
_SET_BY_CLIENT = (
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT",
    "MLFLOW_WORKSPACE",
)

_MAX_COROUTINE_SECONDS = 110
_MAX_SERVER_SECONDS = 300
"""Time for a test with MLflow's server, without its start, whose waits have limits of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the time of coroutines, which the signal of pytest-timeout does not reach, and of slow starts."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _in_time(item.obj)
        if "tracking" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_MAX_SERVER_SECONDS, func_only=True))


def _in_time(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def timed(*args: Any, **fixtures: Any) -> None:
        async with asyncio.timeout(_MAX_COROUTINE_SECONDS):
            await test(*args, **fixtures)

    return timed


@pytest.fixture(scope="session")
def registry_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the database of an empty registry once: its migrations take seconds, a copy is fast."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("registry") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture(scope="session")
def new_registry(registry_template: Path) -> Callable[[Path], str]:
    """Create an empty SQLite registry with artifacts below a folder, and return its URI."""

    def make(folder: Path) -> str:
        home = folder / "mlruns"
        home.mkdir()
        database = shutil.copy(registry_template, home / "mlflow.db")
        with closing(sqlite3.connect(database)) as connection, connection:
            # The default experiment contains the path of its folder.
            connection.execute("UPDATE experiments SET artifact_location = ?", (str(home / "0"),))
        return f"sqlite:///{database}"

    return make


@pytest.fixture(autouse=True)
def restore_environment() -> Iterator[None]:
    """Restore the environment variables that a registry client sets."""
    yield
    for name in _SET_BY_CLIENT:
        os.environ.pop(name, None)


@pytest.fixture
def registry(new_registry: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of an empty registry, which MLflow uses during the test."""
    uri = new_registry(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def tracking(new_registry: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start an MLflow server for all tests, because the start is slow."""
    from tests.support.promotions import Tracking

    folder = tmp_path_factory.mktemp("tracking")
    with Tracking(folder, new_registry(folder)) as server:
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start an S3 server with one bucket; yield the URI of the bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="models")
    yield "s3://models"
    server.stop()


@pytest.fixture(scope="session")
def sample_model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save models with every kind of signature."""
    from tests.support.registry import quiet
    from tests.support.sample_models import sample_models

    home = tmp_path_factory.mktemp("zoo")
    with quiet():
        for name, model in sample_models().items():
            model.save(home / name)
    return {name: home / name for name in sample_models()}


@pytest.fixture(scope="session")
def sample_model_service(
    sample_model_folders: dict[str, Path],
    new_registry: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Start a service of the first versions of all models."""
    from tests.support.registry import Registry
    from tests.support.service import FOR_SKLEARN, SELDOM, served

    home = tmp_path_factory.mktemp("zoo-service")
    registry = Registry(new_registry(home))
    for name, folder in sample_model_folders.items():
        registry.register(name, folder)
    references = ",".join(f"models:/{name}/1" for name in sample_model_folders)
    settings = {"models": references, "grpc_port": 0, "poll_seconds": SELDOM, "preload": FOR_SKLEARN}
    with served(registry.uri, home, **settings) as service:
        service.until_ready()
        yield service


@pytest.fixture(scope="session")
def old_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Save models with an older release of MLflow: `old_mlflow("2.9.2")` returns their folder."""
    from tests.support.mlflow_releases import OldModels

    return OldModels(tmp_path_factory.mktemp("old-models"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """Start a PostgreSQL for all tests."""
    from benchmarks.postgres import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium for one module: no coroutine can be tested in this thread meanwhile."""
    from playwright.sync_api import sync_playwright

    from tests.support.browser import ARGUMENTS, CHROMIUM

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Return the event loop for all coroutines in tests: the one that the service uses."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
async def launcher() -> AsyncIterator[Any]:
    """Start a fork server for all tests, because it takes seconds to warm up."""
    from serving.processes.launcher import Launcher

    launcher = Launcher()
    launcher.start()
    yield launcher
    await launcher.aclose()


@pytest.fixture
async def harness(registry: str, launcher: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """Return an empty registry for followers."""
    from tests.support.followers import FollowerHarness

    new_harness = FollowerHarness(registry, launcher, tmp_path)
    yield new_harness
    await new_harness.aclose()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Name the failed tests last: in CI only the end of the output may be kept, and reasons can be long."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and not hasattr(config, "workerinput"):
        for report in (report for kind in ("failed", "error") for report in reporter.stats.get(kind, [])):
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.partition("\n")[0][:160] if crash else ""
            reporter.write_line(f"{report.when} {report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session of CI in which a test was skipped that is not optional: the others must have run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    # The report of a module that was skipped as a whole has no keywords.
    required = [report for report in skipped if "optional" not in getattr(report, "keywords", ())]
    if os.environ.get("CI") and reporter and required:
        reporter.write_line("\nFailed: in CI only optional tests may be skipped.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
