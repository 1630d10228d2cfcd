"""The service on Ray with replicas on two nodes: promotions, and failures of a replica and a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import ray_cluster
from benchmarks.ray_cluster import CONFIG
from tests.support.process_ids import Watch, descendants, parent
from tests.support.promotions import Callers, Model
from tests.support.registry import NewRegistry, Registry, quiet
from tests.support.service import PROGRAM, environment, until

with quiet():  # Ray declares its settings in a way that pydantic deprecates
    from serving.integrations.ray import BadArguments, RayAsgiAdapter, configured

pytestmark = pytest.mark.timeout(300)  # the cluster takes up to a minute to start

ACTOR, SPEAKER = "models:/actor/Production", "models:/speaker/1"
MAX_BYTES = 2**20
PAUSE = 0.2
"""Seconds between two requests for the state of all replicas."""
MAX_SECONDS_TO_START = 180
"""A new replica imports all modules, and other tests may use both cores."""


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    created = Registry(new_registry(tmp_path_factory.mktemp("registry")))
    created.promote("actor", created.add("actor"))
    created.add("speaker", streams=True)
    return created


class Cluster(ray_cluster.Cluster):
    """A Ray cluster with the client interface of a service."""

    def __init__(self, registry: str, folder: Path, **settings: Any) -> None:
        # Detect a dead node in a second instead of half a minute.
        soon = {"initial_delay_ms": "0", "period_ms": "300", "timeout_ms": "300", "failure_threshold": "3"}
        env = {f"RAY_health_check_{name}": value for name, value in soon.items()}
        super().__init__(folder, environment(registry, folder, **settings) | env)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def cluster(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = {
        "models": f"{ACTOR},{SPEAKER}",
        "probation_seconds": 0,
        "max_body_bytes": MAX_BYTES,
        "poll_seconds": 0.3,
    }
    with Cluster(registry.uri, tmp_path_factory.mktemp("ray"), **settings) as running, running.client:
        running.deploy(2)
        yield running


@pytest.fixture
def model(cluster: Cluster, registry: Registry) -> Model:
    return Model("actor", cluster, registry)  # type: ignore[arg-type]  # it has all attributes that Model uses


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


# -- arguments


def test_arguments_override_environment_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_REPLICAS", "3")
    monkeypatch.setenv("SERVING_POLL_SECONDS", "5")
    arguments = {"models": ["models:/iris@champion", "models:/rose/3"], "replicas": 2, "start_seconds": "30"}
    settings, start_seconds = configured(arguments)
    assert [str(each) for each in settings.models] == arguments["models"]
    assert (settings.replicas, settings.poll_seconds, start_seconds) == (2, 5, 30)


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ({"modles": "x", "port": 1}, ["modles: there is no such setting", "port: Ray's proxy listens"]),
        (
            {"models": "iris", "modles": "x"},
            ["SERVING_MODELS: 'iris' is not a model reference", "modles: there is no such"],
        ),
        ({"admin_port": 9000}, ["SERVING_ADMIN_PORT: not supported on Ray, where only Ray's proxy listens"]),
        ({"start_seconds": "soon"}, ["start_seconds: Input should be a valid number"]),
        ({"start_seconds": 0}, ["start_seconds: Input should be greater than 0"]),
    ],
    ids=["of the proxy", "wrong", "not there", "no number", "no time"],
)
def test_every_invalid_argument_is_reported_on_a_line(arguments: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(BadArguments) as refused:
        configured(arguments)
    errors = sorted(str(refused.value).splitlines())
    assert len(errors) == len(lines)
    for line, begin in zip(errors, sorted(lines), strict=True):
        assert line.startswith(begin)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "root", "forwarded"),
    [("/predict", "", "/predict"), ("/ml/predict", "/ml", "/ml/predict"), ("/predict", "/ml", "/ml/predict")],
)
async def test_path_has_the_route_prefix_and_one_request_id(path: str, root: str, forwarded: str) -> None:
    sent: list[Any] = []

    async def front(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], scope["root_path"]) == (forwarded, root)
        headers = [(b"x-request-id", b"mine"), (b"x-request-id", b"new"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "root_path": root, "headers": [(b"x-request-id", b"mine")]}
    await RayAsgiAdapter(front, AsyncExitStack())(scope, send, send)  # type: ignore[arg-type]  # it receives nothing
    assert sent[0]["headers"] == [(b"x-request-id", b"new"), (b"x", b"y")]


def test_config_file_names_this_application() -> None:
    text = CONFIG.read_text()
    assert "import_path: serving.integrations.ray:app" in text
    assert "name: front" in text


# -- through Ray's proxy


def test_ready_reports_all_replicas_and_their_agreement(cluster: Cluster) -> None:
    ready = cluster.ready()
    assert ready["status"] == "ready"
    assert ready["replicas_agree"] is True
    assert [each["models"] for each in ready["replicas"]] == [{ACTOR: "1", SPEAKER: "1"}] * 2
    assert (
        len({each["id"] for each in ready["replicas"]})
        == len({each["node"] for each in ready["replicas"]})
        == 2
    )
    assert cluster.client.get("/readyz").json()["replicas"]
    command: list[Any] = [PROGRAM, "status", cluster.url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(f"instance {each['id']} on " in printed for each in ready["replicas"])


def test_proxy_passes_responses_and_problems_unchanged(cluster: Cluster) -> None:
    answer = cluster.client.post("/predict", json={"x": 2.0}, headers={"X-Request-ID": "mine"})
    assert answer.json() == {"prediction": 2.0, "model": {"name": "actor", "version": "1"}}
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert (answer.headers["x-model-version"], answer.headers["cache-control"]) == ("1", "no-store")
    assert "model;dur=" in answer.headers["server-timing"]
    problem = cluster.client.post("/predict", json={"x": "2"})
    assert (problem.status_code, problem.headers["content-type"]) == (422, "application/problem+json")
    assert problem.headers.get_list("x-request-id") == [problem.json()["request_id"]]
    assert cluster.client.get("/nowhere").json()["status"] == 404


def test_bodies_are_accepted_up_to_the_limit(cluster: Cluster) -> None:
    rows = [{"x": float(number)} for number in range(20_000)]
    answer = cluster.client.post("/predict/batch", json={"rows": rows})
    assert [each["prediction"] for each in answer.json()["predictions"]] == [row["x"] for row in rows]
    too_large = cluster.client.post("/predict/batch", json={"rows": rows * 4})
    assert too_large.status_code == 413


def test_response_streams_until_client_disconnects(cluster: Cluster, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    ended = tmp_path / "ended"
    row = {"x": 1.0, "act": f"say:a wait:{tmp_path / 'go'} for:on end:{ended}"}
    with cluster.client.stream("POST", "/models/speaker/predict/stream", json=row) as answer:
        lines = answer.iter_lines()
        assert next(lines) == 'data: "a"'
        (tmp_path / "go").write_text("go")
        until(lambda: "on" in next(lines))
    until(ended.exists)


def test_metrics_cover_all_replicas(cluster: Cluster) -> None:
    def scraped_ids() -> set[str]:
        cluster.client.post("/predict", json={"x": 1.0})
        text = cluster.client.get("/metrics").text
        return {each["id"] for each in cluster.ready()["replicas"] if f'replica="{each["id"]}"' in text}

    until(lambda: len(scraped_ids()) == 2)


# -- promotions and deaths


def agreed(cluster: Cluster, version: str, count: int = 2) -> bool:
    """Return whether exactly `count` replicas are known and all have this version."""
    ready = cluster.ready()
    versions = [each["models"].get(ACTOR) for each in ready.get("replicas", [])]
    return bool(versions == [version] * count and ready["replicas_agree"])


def test_promotion_reaches_all_replicas_without_failed_requests(cluster: Cluster, model: Model) -> None:
    with Callers(model) as callers:
        callers.until_more(50)
        version = model.promote()
        until(lambda: agreed(cluster, version), PAUSE)
        all_have_it = time.monotonic()
        callers.until_more(100)
    assert callers.faults == []
    assert callers.versions == [1, 2]
    assert {call.version for call in callers.calls if call.sent > all_have_it} == {2}
    assert model.until_tagged(version, "live")


def held(model: Model, caller: ThreadPoolExecutor, folder: Path) -> tuple[Future[httpx.Response], int]:
    """Start a request that blocks its model process; return it with the pid of the replica."""
    note, never = folder / "note", folder / "never"
    note.unlink(missing_ok=True)
    if not never.exists():
        os.mkfifo(never)
    under_way = caller.submit(model.predict, 1.0, f"note:{note} wait:{never}")
    until(lambda: note.exists() and note.read_text())
    # The ancestors of a model process are its fork server, the guardian and the replica.
    return under_way, parent(parent(parent(int(note.read_text()))))


def test_killed_replica_loses_only_its_requests(
    cluster: Cluster, model: Model, caller: ThreadPoolExecutor, tmp_path: Path
) -> None:
    breaking = model.promote(inputs="x: double, act: string?, z: double", example=None)
    model.until_refused(breaking)
    with Callers(model) as callers:
        under_way, replica = held(model, caller, tmp_path)
        with Watch({replica, *descendants(replica)}) as dying:
            os.kill(replica, signal.SIGKILL)
            assert not dying.left()
        assert under_way.result().status_code == 500
        until(lambda: agreed(cluster, "2", count=1), PAUSE)
        gone = time.monotonic()
        until(lambda: agreed(cluster, "2"), PAUSE, MAX_SECONDS_TO_START)
        callers.until_more(100)
    assert callers.versions == [2]
    assert all(call.fault.startswith("500") and call.sent < gone for call in callers.faults)
    assert [*model.state["candidate"].values()][:2] == [breaking, "rejected"]


def test_killed_node_loses_only_its_requests(
    cluster: Cluster, model: Model, caller: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with Callers(model) as callers:
        under_way, replica = held(model, caller, tmp_path)
        while replica not in cluster.worker.replicas:
            (tmp_path / "never").write_text("")
            assert under_way.result().status_code == 200
            under_way, replica = held(model, caller, tmp_path)
        with Watch({replica, *descendants(replica)}) as dying:
            cluster.worker.kill()
            assert not dying.left()
        assert under_way.result().status_code == 500
        until(lambda: agreed(cluster, "2", count=1), PAUSE)
        gone = time.monotonic()
        callers.until_more(100)
    assert callers.versions == [2]
    assert all(call.fault.startswith("500") and call.sent < gone for call in callers.faults)
    assert any("actor version 2 is live" in line for line in cluster.log)
    assert not [line for line in cluster.log if '"exception"' in line]
