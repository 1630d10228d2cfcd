"""A version in Staging that is asked what Production was asked, and what is told of how it does."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from browsers import CHROMIUM
from casting import Registry, actor
from conftest import NewRegistry
from live import Service, served, until
from pids import Watch
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families
from promotions import Model

from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.rollout.comparison import TAG, ComparisonStats

NAMES = [f"tried-{number}" for number in range(12)]


class Tried:
    """A model in Production, version 1, and what is tried beside it in Staging."""

    def __init__(self, name: str, service: Service, registry: Registry) -> None:
        self.service, self.registry = service, registry
        self.live = Model(name, service, registry)
        self.staging = Model(name, service, registry, "/Staging")

    def stage(self, **part: Any) -> str:
        """Put a version into Staging, where it is brought up."""
        version = self.live.add(**part)
        self.registry.promote(self.live.name, version, "Staging")
        self.staging.until_live(version)
        return version

    def ask(self, rows: int = 200, x: float = 1.0) -> None:
        """Have rows answered by Production, rightly."""
        body = {"rows": [{"x": x}] * rows}
        answer = self.service.client.post(f"/models/{self.live.name}/predict/batch", json=body).json()
        assert answer["predictions"] == [{"prediction": x}] * rows
        assert answer["model"]["version"] == "1"

    def until_compared(self, rows: int = 200) -> dict[str, Any]:
        state = self.staging.until(lambda state: state["shadow"]["rows"] >= rows)
        found: dict[str, Any] = state["shadow"]
        return found


@pytest.fixture(scope="module")
def trials(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Tried]]:
    """Models on one service, each with version 1 in Production."""
    folder = tmp_path_factory.mktemp("shadow")
    registry = Registry(new_registry(folder))
    first = actor(folder, factor=1.0)
    for name in NAMES:
        registry.promote(name, registry.register(name, first))
    models = ",".join(f"models:/{name}/Production" for name in NAMES)
    shadow = ",".join(f"models:/{name}/Staging" for name in NAMES)
    settings = {
        "models": models,
        "shadow": shadow,
        "probation_seconds": 0,
        "poll_seconds": 0.5,
        "grpc_port": 0,
    }
    with served(registry.uri, folder, **settings) as service:
        service.until_ready()
        yield (Tried(name, service, registry) for name in NAMES)


@pytest.fixture
def tried(trials: Iterator[Tried]) -> Tried:
    return next(trials)


def test_a_shadow_that_agrees_is_told_of_everywhere(tried: Tried) -> None:
    # With nothing in Staging a version that is not loaded is unknown, and none to wait for.
    path = f"/models/{tried.live.name}/versions/9/predict"
    assert tried.service.client.post(path, json={"x": 1.0}).status_code == 404
    version = tried.stage(factor=1.0)
    tried.ask()
    found = tried.until_compared()
    assert (found["live"], found["agreement"], found["failed"], found["dropped"]) == ("1", 1.0, 0, 0)
    assert found["differences"] == {"p50": 0.0, "p95": 0.0, "p99": 0.0, "p100": 0.0}
    assert found["latency"] > 0
    assert not tried.staging.state["required"]
    until(
        lambda: (
            tried.live.tags(version).get("shadow", "").startswith(f"agrees with {NAMES[0]} version 1 in 100")
        )
    )
    samples = {
        (sample.name, sample.labels.get("outcome") or sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(tried.service.client.get("/metrics").text)
        if family.name.startswith("serving_shadow")
        for sample in family.samples
        if sample.labels["model"] == NAMES[0]
    }
    assert samples["serving_shadow_rows", "same"] == 200
    assert samples["serving_shadow_rows", "failed"] == 0
    assert samples["serving_shadow_difference_ratio_bucket", "0.0"] == 200
    assert samples["serving_shadow_difference_ratio_count", None] == 200


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_how_a_shadow_does_is_seen_on_the_page(tried: Tried, browser: Browser) -> None:
    tried.stage(factor=1.25)
    tried.ask()
    tried.until_compared()
    page = browser.new_page()
    page.goto(f"{tried.service.url}/#{tried.live.name}/Staging")
    card = page.get_by_role("region", name="Shadow")
    for name, value in (("Beside version", "1"), ("Rows compared", "200"), ("The same, within 1 %", "0%")):
        expect(card.locator("div", has_text=name).locator("dd")).to_have_text(value)
    expect(card).to_contain_text("Half differ by up to20%")
    page.close()


def test_a_shadow_that_differs_answers_nobody(tried: Tried) -> None:
    tried.stage(factor=4.0)
    tried.ask()
    found = tried.until_compared()
    assert found["agreement"] == 0.0
    assert found["differences"]["p50"] == pytest.approx(0.75)
    tried.ask(1)
    # Who wants its answer asks for it by name.
    path = f"/models/{tried.live.name}/predict"
    answer = tried.service.client.post(
        path, json={"x": 1.0}, headers={"X-Model": f"{tried.live.name}/Staging"}
    )
    assert answer.status_code == 400
    answer = tried.service.client.post(
        "/predict", json={"x": 1.0}, headers={"X-Model": f"{tried.live.name}/Staging"}
    )
    assert answer.json()["prediction"] == 4.0


def test_every_protocol_is_compared(tried: Tried) -> None:
    tried.stage(factor=1.0)
    client, name = tried.service.client, tried.live.name
    tensor = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}
    asked = [
        (f"/models/{name}/predict", {"json": {"x": 1.0}}),
        (f"/models/{name}/predict/batch", {"json": {"rows": [{"x": 1.0}, {"x": 2.0}]}}),
        (f"/invocations?model={name}", {"json": {"dataframe_records": [{"x": 1.0}, {"x": 2.0}]}}),
        (f"/v2/models/{name}/infer", {"json": {"inputs": [tensor]}}),
    ]
    for path, body in asked:
        assert client.post(path, **body).status_code == 200
    with grpc.insecure_channel(tried.service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]) as channel:
        x = protos.ModelInferRequest.InferInputTensor(name="x", datatype="FP64", shape=[3])
        x.contents.fp64_contents.extend([1.0, 2.0, 3.0])
        services.GRPCInferenceServiceStub(channel).ModelInfer(
            protos.ModelInferRequest(model_name=name, inputs=[x])
        )
    found = tried.until_compared(10)
    assert (found["rows"], found["agreement"]) == (10, 1.0)


def let_through(gate: Path) -> None:
    """Have who waits at a named pipe go on, if anybody does: what hangs for long is killed."""
    with suppress(OSError):
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits until it has been written."""
    made = tmp_path / "gate"
    os.mkfifo(made)
    return made


def test_a_shadow_that_hangs_or_fails_is_none_of_the_clients_business(tried: Tried, gate: Path) -> None:
    tried.stage(factor=1.0, on_large=f"wait:{gate} raise:unfit")
    tried.ask(10, x=101.0)
    for _ in range(25):  # it waits at the gate: what does not fit its queue is left out
        tried.ask(100)
    dropped = tried.staging.until(lambda state: state["shadow"]["dropped"])["shadow"]["dropped"]
    assert dropped % 100 == 0
    until(lambda: tried.staging.state["shadow"]["failed"] or let_through(gate))
    assert tried.staging.state["shadow"]["failed"] == 10
    assert tried.until_compared(2000)["agreement"] == 1.0


def test_what_waits_is_bounded_in_bytes_too(tried: Tried, gate: Path) -> None:
    tried.stage(factor=1.0, on_large=f"wait:{gate}")
    tried.ask(10, x=101.0)
    text = "x" * (8 * 2**20)
    for _ in range(3):  # as objects they take about four times as much, and 64 MB is the most
        answer = tried.service.client.post(f"/models/{tried.live.name}/predict", json={"x": 1.0, "act": text})
        assert answer.status_code == 200
    tried.ask(100)
    dropped = tried.staging.until(lambda state: state["shadow"]["dropped"])["shadow"]["dropped"]
    assert dropped in (1, 2)
    until(lambda: tried.staging.state["shadow"]["rows"] or let_through(gate))
    assert tried.until_compared(113 - dropped)["agreement"] == 1.0


def test_what_the_version_before_has_answered_is_not_compared_as_the_next_ones(
    tried: Tried, gate: Path
) -> None:
    tried.stage(factor=2.0, on_large=f"wait:{gate}")
    tried.ask(1, x=101.0)
    tried.ask(100)  # it waits at the gate, and they behind it
    next_one = tried.live.promote(factor=2.0)
    tried.live.until_live(next_one)
    until(lambda: tried.live.predict().json()["prediction"] == 2.0)
    until(lambda: tried.staging.state["shadow"]["rows"] or let_through(gate))
    for _ in range(20):
        tried.live.predict()
    # Some may be dropped: the shadow seems slow after it has waited.
    found = tried.until_compared(5)
    assert (found["live"], found["agreement"]) == (next_one, 1.0)
    assert found["rows"] <= 21


def priorities(pid: int) -> set[int]:
    """How willingly each thread of a process lets others go first."""
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def test_processes_of_a_shadow_let_all_others_go_first(tried: Tried, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    tried.stage(factor=1.0, on_load=f"note:{note}")
    tried.ask(10)
    tried.until_compared(10)
    first = int(note.read_text())
    assert priorities(first) == {19}
    with Watch([first]) as dying:
        os.kill(first, signal.SIGKILL)
        assert not dying.left()
    until(lambda: int(note.read_text() or first) != first)
    until(lambda: tried.ask(10) or priorities(int(note.read_text())) == {19})  # as soon as it is asked


def test_what_another_front_says_of_the_same_with_more_rows_stays(trials: Iterator[Tried]) -> None:
    said = ComparisonStats(rows=100_000, agreeing=99_000, failed=3)
    tags = {}
    for live, tried in zip("19", trials, strict=False):
        version = tried.live.add(factor=1.0)
        label = f"{tried.live.name} version {live}"
        tags[live] = tried.live.name, version, said.summary(label)
        for tag_name, value in said.tags(label, {}).items():
            tried.registry.client.set_model_version_tag(*tags[live][:2], tag_name, value)
        tried.registry.promote(tried.live.name, version, "Staging")
        tried.staging.until_live(version)
        tried.ask()
        tried.until_compared()

    def tag(live: str) -> str:
        name, version, _ = tags[live]
        return str(tried.registry.client.get_model_version(name, version).tags[TAG])

    # What is told of another live version is past; it is written behind what is told of the first.
    until(lambda: tag("9").startswith(f"agrees with {tags['9'][0]} version 1 in 100.0% of 200 rows"))
    assert tag("1") == tags["1"][2]


def test_a_shadow_that_takes_something_else_is_not_asked(tried: Tried) -> None:
    tried.stage(inputs="x: double, y: double", example=None)
    tried.ask()
    found = tried.staging.until(lambda state: state["shadow"]["reason"])["shadow"]
    assert found["reason"].startswith("its inputs or outputs differ: ")
    assert found["rows"] == 0
