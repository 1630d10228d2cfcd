"""Shadow versions: mirrored requests, compared predictions and their reports."""

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
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families

from serving.grpc import inference_pb2 as protos
from serving.grpc import inference_pb2_grpc as services
from serving.rollout.comparison import TAG, ComparisonStats
from tests.support.browser import CHROMIUM
from tests.support.process_ids import Watch
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, served, until

NAMES = [f"tried-{number}" for number in range(12)]


class Tried:
    """A model with version 1 in Production and its shadow in Staging."""

    def __init__(self, name: str, service: Service, registry: Registry) -> None:
        self.service, self.registry = service, registry
        self.live = Model(name, service, registry)
        self.staging = Model(name, service, registry, "/Staging")

    def stage(self, **part: Any) -> str:
        """Promote a new version to Staging and wait until it is live."""
        version = self.live.add(**part)
        self.registry.promote(self.live.name, version, "Staging")
        self.staging.until_live(version)
        return version

    def ask(self, rows: int = 200, x: float = 1.0) -> None:
        """Send rows to Production and verify the predictions."""
        body = {"rows": [{"x": x}] * rows}
        response = self.service.client.post(f"/models/{self.live.name}/predict/batch", json=body).json()
        assert response["predictions"] == [{"prediction": x}] * rows
        assert response["model"]["version"] == "1"

    def until_compared(self, rows: int = 200) -> dict[str, Any]:
        state = self.staging.until(lambda state: state["shadow"]["rows"] >= rows)
        shadow: dict[str, Any] = state["shadow"]
        return shadow


@pytest.fixture(scope="module")
def trials(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Tried]]:
    """Serve models that each have version 1 in Production."""
    folder = tmp_path_factory.mktemp("shadow")
    registry = Registry(new_registry(folder))
    first = save_scripted_model(folder, factor=1.0)
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


def test_agreement_is_reported_in_state_tags_and_metrics(tried: Tried) -> None:
    # While Staging is empty, a request for an unknown version fails without waiting.
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
def test_page_shows_shadow_results(tried: Tried, browser: Browser) -> None:
    tried.stage(factor=1.25)
    tried.ask()
    tried.until_compared()
    page = browser.new_page()
    page.goto(f"{tried.service.url}/#{tried.live.name}/Staging")
    card = page.get_by_role("region", name="Shadow")
    for name, value in (("Compared with version", "1"), ("Rows compared", "200"), ("Equal within 1 %", "0%")):
        expect(card.locator("div", has_text=name).locator("dd")).to_have_text(value)
    expect(card).to_contain_text("Difference, median20%")
    page.close()


def test_shadow_predictions_are_not_returned_to_clients(tried: Tried) -> None:
    tried.stage(factor=4.0)
    tried.ask()
    found = tried.until_compared()
    assert found["agreement"] == 0.0
    assert found["differences"]["p50"] == pytest.approx(0.75)
    tried.ask(1)
    # Clients can still select the shadow by name.
    path = f"/models/{tried.live.name}/predict"
    response = tried.service.client.post(
        path, json={"x": 1.0}, headers={"X-Model": f"{tried.live.name}/Staging"}
    )
    assert response.status_code == 400
    response = tried.service.client.post(
        "/predict", json={"x": 1.0}, headers={"X-Model": f"{tried.live.name}/Staging"}
    )
    assert response.json()["prediction"] == 4.0


def test_requests_of_every_protocol_are_compared(tried: Tried) -> None:
    tried.stage(factor=1.0)
    client, name = tried.service.client, tried.live.name
    tensor = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}
    requests: list[tuple[str, dict[str, Any]]] = [
        (f"/models/{name}/predict", {"json": {"x": 1.0}}),
        (f"/models/{name}/predict/batch", {"json": {"rows": [{"x": 1.0}, {"x": 2.0}]}}),
        (f"/invocations?model={name}", {"json": {"dataframe_records": [{"x": 1.0}, {"x": 2.0}]}}),
        (f"/v2/models/{name}/infer", {"json": {"inputs": [tensor]}}),
    ]
    for path, body in requests:
        assert client.post(path, **body).status_code == 200
    with grpc.insecure_channel(tried.service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]) as channel:
        x = protos.ModelInferRequest.InferInputTensor(name="x", datatype="FP64", shape=[3])
        x.contents.fp64_contents.extend([1.0, 2.0, 3.0])
        services.GRPCInferenceServiceStub(channel).ModelInfer(
            protos.ModelInferRequest(model_name=name, inputs=[x])
        )
    found = tried.until_compared(10)
    assert (found["rows"], found["agreement"]) == (10, 1.0)


def let_through(gate: Path) -> bool:
    """Release the reader of a named pipe, if there is one: a model that hangs for long is killed.

    Return False, so that `or` can follow a condition with it.
    """
    with suppress(OSError):
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    return False


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Return a named pipe, on which a reader blocks until it is opened for writing."""
    pipe = tmp_path / "gate"
    os.mkfifo(pipe)
    return pipe


def test_hanging_or_failing_shadow_does_not_affect_clients(tried: Tried, gate: Path) -> None:
    tried.stage(factor=1.0, on_large=f"wait:{gate} raise:unfit")
    tried.ask(10, x=101.0)
    for _ in range(25):  # the shadow is blocked: requests beyond its queue are dropped
        tried.ask(100)
    dropped = tried.staging.until(lambda state: state["shadow"]["dropped"])["shadow"]["dropped"]
    assert dropped % 100 == 0
    until(lambda: tried.staging.state["shadow"]["failed"] or let_through(gate))
    assert tried.staging.state["shadow"]["failed"] == 10
    assert tried.until_compared(2000)["agreement"] == 1.0


def test_shadow_queue_is_bounded_in_bytes(tried: Tried, gate: Path) -> None:
    tried.stage(factor=1.0, on_large=f"wait:{gate}")
    tried.ask(10, x=101.0)
    text = "x" * (8 * 2**20)
    for _ in range(3):  # as objects they take about four times as much; the limit is 64 MB
        response = tried.service.client.post(
            f"/models/{tried.live.name}/predict", json={"x": 1.0, "act": text}
        )
        assert response.status_code == 200
    tried.ask(100)
    dropped = tried.staging.until(lambda state: state["shadow"]["dropped"])["shadow"]["dropped"]
    assert dropped in (1, 2)
    until(lambda: tried.staging.state["shadow"]["rows"] or let_through(gate))
    assert tried.until_compared(113 - dropped)["agreement"] == 1.0


def test_promotion_discards_queued_comparisons(tried: Tried, gate: Path) -> None:
    tried.stage(factor=2.0, on_large=f"wait:{gate}")
    tried.ask(1, x=101.0)
    tried.ask(100)  # queued behind the blocked request
    next_one = tried.live.promote(factor=2.0)
    tried.live.until_live(next_one)
    until(lambda: tried.live.predict().json()["prediction"] == 2.0)
    until(lambda: tried.staging.state["shadow"]["rows"] or let_through(gate))
    for _ in range(20):
        tried.live.predict()
    # Some may be dropped: the shadow appears slow after the block.
    found = tried.until_compared(5)
    assert (found["live"], found["agreement"]) == (next_one, 1.0)
    assert found["rows"] <= 21


def priorities(pid: int) -> set[int]:
    """Return the nice values of the threads of a process."""
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def test_shadow_processes_have_lowest_priority(tried: Tried, tmp_path: Path) -> None:
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

    def has_lowest_priority() -> bool:
        tried.ask(10)
        return priorities(int(note.read_text())) == {19}

    until(has_lowest_priority)


def test_tag_of_another_front_with_more_rows_stays(trials: Iterator[Tried]) -> None:
    stats = ComparisonStats(rows=100_000, agreeing=99_000, failed=3)
    tags = {}
    for live, tried in zip("19", trials, strict=False):
        version = tried.live.add(factor=1.0)
        label = f"{tried.live.name} version {live}"
        tags[live] = tried.live.name, version, stats.summary(label)
        for tag_name, value in stats.tags(label, {}).items():
            tried.registry.client.set_model_version_tag(*tags[live][:2], tag_name, value)
        tried.registry.promote(tried.live.name, version, "Staging")
        tried.staging.until_live(version)
        tried.ask()
        tried.until_compared()

    def tag(live: str) -> str:
        name, version, _ = tags[live]
        return str(tried.registry.client.get_model_version(name, version).tags[TAG])

    # Results against another live version are outdated and get replaced, after the tag of the first model.
    until(lambda: tag("9").startswith(f"agrees with {tags['9'][0]} version 1 in 100.0% of 200 rows"))
    assert tag("1") == tags["1"][2]


def test_incompatible_shadow_gets_no_requests(tried: Tried) -> None:
    tried.stage(inputs="x: double, y: double", example=None)
    tried.ask()
    found = tried.staging.until(lambda state: state["shadow"]["reason"])["shadow"]
    assert found["reason"].startswith("its inputs or outputs differ: ")
    assert found["rows"] == 0
