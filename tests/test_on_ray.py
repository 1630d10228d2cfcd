"""On Ray: the service in replicas on two nodes, through a promotion and the death of a replica and a node."""

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
from casting import Registry, quiet
from conftest import NewRegistry
from live import PROGRAM, environment, until
from pids import Watch, descendants, parent
from promotions import Callers, Model

from benchmarks import ray_cluster
from benchmarks.ray_cluster import CONFIG

with quiet():  # Ray's own settings are declared in a way that pydantic means to drop
    from serving.integrations.ray import BadArguments, RayAsgiAdapter, configured

pytestmark = pytest.mark.timeout(300)  # of which the cluster takes up to a minute

ACTOR, SPEAKER = "models:/actor/Production", "models:/speaker/1"
MOST_BYTES = 2**20
PAUSE = 0.2
"""Between two looks at what all replicas tell, for which each is asked."""
MAX_SECONDS_TO_START = 180
"""A new replica imports everything anew, and other tests may keep both cores busy."""


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    made = Registry(new_registry(tmp_path_factory.mktemp("registry")))
    made.promote("actor", made.add("actor"))
    made.add("speaker", streams=True)
    return made


class Cluster(ray_cluster.Cluster):
    """A cluster that is called as a service is."""

    def __init__(self, registry: str, folder: Path, **settings: Any) -> None:
        # A dead node is noticed in a second rather than in half a minute.
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
        "max_body_bytes": MOST_BYTES,
        "poll_seconds": 0.3,
    }
    with Cluster(registry.uri, tmp_path_factory.mktemp("ray"), **settings) as running, running.client:
        running.deploy(2)
        yield running


@pytest.fixture
def model(cluster: Cluster, registry: Registry) -> Model:
    return Model("actor", cluster, registry)  # type: ignore[arg-type]  # all it needs is there


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


# -- what it is made of


def test_arguments_are_settings_and_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_REPLICAS", "3")
    monkeypatch.setenv("SERVING_POLL_SECONDS", "5")
    given = {"models": ["models:/iris@champion", "models:/rose/3"], "replicas": 2, "start_seconds": "30"}
    settings, start_seconds = configured(given)
    assert [str(each) for each in settings.models] == given["models"]
    assert (settings.replicas, settings.poll_seconds, start_seconds) == (2, 5, 30)


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"modles": "x", "port": 1}, ["modles: there is no such setting", "port: Ray's proxy listens"]),
        (
            {"models": "iris", "modles": "x"},
            ["SERVING_MODELS: 'iris' is no model", "modles: there is no such"],
        ),
        ({"admin_port": 9000}, ["SERVING_ADMIN_PORT: not supported on Ray, where only Ray's proxy listens"]),
        ({"start_seconds": "soon"}, ["start_seconds: Input should be a valid number"]),
        ({"start_seconds": 0}, ["start_seconds: Input should be greater than 0"]),
    ],
    ids=["of the proxy", "wrong", "not there", "no number", "no time"],
)
def test_each_mistake_is_a_line(given: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(BadArguments) as refused:
        configured(given)
    told = sorted(str(refused.value).splitlines())
    assert len(told) == len(lines)
    for line, begin in zip(told, sorted(lines), strict=True):
        assert line.startswith(begin)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "root", "found"),
    [("/predict", "", "/predict"), ("/ml/predict", "/ml", "/predict"), ("/predict", "/ml", "/predict")],
)
async def test_a_route_prefix_and_a_second_request_id_are_taken_off(path: str, root: str, found: str) -> None:
    sent: list[Any] = []

    async def front(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], scope["root_path"]) == (found, root)
        headers = [(b"x-request-id", b"mine"), (b"x-request-id", b"new"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "root_path": root, "headers": [(b"x-request-id", b"mine")]}
    await RayAsgiAdapter(front, AsyncExitStack())(scope, send, send)
    assert sent[0]["headers"] == [(b"x-request-id", b"new"), (b"x", b"y")]


def test_the_config_file_is_for_this_application() -> None:
    text = CONFIG.read_text()
    assert "import_path: serving.integrations.ray:app" in text
    assert "name: front" in text


# -- through Ray's proxy


def test_ready_tells_every_replica_and_that_they_agree(cluster: Cluster) -> None:
    told = cluster.ready()
    assert told["status"] == "ready"
    assert told["replicas_agree"] is True
    assert [each["models"] for each in told["replicas"]] == [{ACTOR: "1", SPEAKER: "1"}] * 2
    assert (
        len({each["id"] for each in told["replicas"]})
        == len({each["node"] for each in told["replicas"]})
        == 2
    )
    assert cluster.client.get("/readyz").json()["replicas"]
    command = [PROGRAM, "status", cluster.url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(f"instance {each['id']} on " in printed for each in told["replicas"])


def test_answers_and_problems_pass_unchanged(cluster: Cluster) -> None:
    answer = cluster.client.post("/predict", json={"x": 2.0}, headers={"X-Request-ID": "mine"})
    assert answer.json() == {"prediction": 2.0, "model": {"name": "actor", "version": "1"}}
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert (answer.headers["x-model-version"], answer.headers["cache-control"]) == ("1", "no-store")
    assert "model;dur=" in answer.headers["server-timing"]
    problem = cluster.client.post("/predict", json={"x": "2"})
    assert (problem.status_code, problem.headers["content-type"]) == (422, "application/problem+json")
    assert problem.headers.get_list("x-request-id") == [problem.json()["request_id"]]
    assert cluster.client.get("/nowhere").json()["status"] == 404


def test_large_bodies_are_answered_up_to_the_limit(cluster: Cluster) -> None:
    rows = [{"x": float(number)} for number in range(20_000)]
    answer = cluster.client.post("/predict/batch", json={"rows": rows})
    assert [each["prediction"] for each in answer.json()["predictions"]] == [row["x"] for row in rows]
    too_large = cluster.client.post("/predict/batch", json={"rows": rows * 4})
    assert too_large.status_code == 413


def test_an_answer_is_streamed_bit_by_bit_until_the_caller_leaves(cluster: Cluster, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    ended = tmp_path / "ended"
    row = {"x": 1.0, "act": f"say:a wait:{tmp_path / 'go'} for:on end:{ended}"}
    with cluster.client.stream("POST", "/models/speaker/predict/stream", json=row) as answer:
        lines = answer.iter_lines()
        assert next(lines) == 'data: "a"'
        (tmp_path / "go").write_text("go")
        until(lambda: "on" in next(lines))
    until(ended.exists)


def test_metrics_are_of_all_replicas(cluster: Cluster) -> None:
    def told() -> set[str]:
        cluster.client.post("/predict", json={"x": 1.0})
        text = cluster.client.get("/metrics").text
        return {each["id"] for each in cluster.ready()["replicas"] if f'replica="{each["id"]}"' in text}

    until(lambda: len(told()) == 2)


# -- promotions and deaths


def agreed(cluster: Cluster, version: str, count: int = 2) -> bool:
    """Whether all replicas, so many, have this version, as one of them tells."""
    told = cluster.ready()
    found = [each["models"].get(ACTOR) for each in told.get("replicas", [])]
    return bool(found == [version] * count and told["replicas_agree"])


def test_a_promotion_is_followed_by_all_replicas_without_a_failed_request(
    cluster: Cluster, model: Model
) -> None:
    with Callers(model) as callers:
        callers.until_more(50)
        version = model.promote()
        until(lambda: agreed(cluster, version), PAUSE)
        all_have_it = time.monotonic()
        callers.until_more(100)
    assert callers.faults == []
    assert callers.versions == [1, 2]
    assert {call.version for call in callers.calls if call.sent > all_have_it} == {2}
    assert model.until_told(version, "live")


def held(model: Model, caller: ThreadPoolExecutor, folder: Path) -> tuple[Future[httpx.Response], int]:
    """A request that is under way until the model process that has it dies, and the replica of that."""
    note, never = folder / "note", folder / "never"
    note.unlink(missing_ok=True)
    if not never.exists():
        os.mkfifo(never)
    under_way = caller.submit(model.predict, 1.0, f"note:{note} wait:{never}")
    until(lambda: note.exists() and note.read_text())
    return under_way, parent(parent(parent(int(note.read_text()))))  # its fork server has a guardian


def test_with_a_replica_dies_what_was_under_way_on_it_and_its_successor_has_what_the_others_have(
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


def test_with_a_node_dies_what_was_under_way_on_it_and_the_other_goes_on(
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
