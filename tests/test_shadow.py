"""A version in Staging that is asked what Production was asked, and what is told of how it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from browsers import CHROMIUM
from casting import Registry, actor
from conftest import NewRegistry
from live import Service, served, until
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families
from promotions import Model

from serving.monitoring.likeness import Tally, difference

NAMES = [f"tried-{number}" for number in range(6)]


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
    settings = {"models": models, "shadow": shadow, "probation_seconds": 0, "poll_seconds": 0.5}
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
    assert tried.until_compared(7)["agreement"] == 1.0


def let_through(gate: Path) -> None:
    """Have who waits at a named pipe go on, if anybody does: what hangs for long is killed."""
    with suppress(OSError):
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))


def test_a_shadow_that_hangs_or_fails_is_none_of_the_clients_business(tried: Tried, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    tried.stage(factor=1.0, on_large=f"wait:{tmp_path / 'gate'} raise:unfit")
    tried.ask(10, x=101.0)
    for _ in range(25):  # it waits at the gate: what does not fit its queue is left out
        tried.ask(100)
    dropped = tried.staging.until(lambda state: state["shadow"]["dropped"])["shadow"]["dropped"]
    assert dropped % 100 == 0
    until(lambda: tried.staging.state["shadow"]["failed"] or let_through(tmp_path / "gate"))
    assert tried.staging.state["shadow"]["failed"] == 10
    assert tried.until_compared(2000)["agreement"] == 1.0


def test_a_shadow_that_takes_something_else_is_not_asked(tried: Tried) -> None:
    tried.stage(inputs="x: double, y: double", example=None)
    tried.ask()
    found = tried.staging.until(lambda state: state["shadow"]["reason"])["shadow"]
    assert found["reason"].startswith("it takes or answers something else: ")
    assert found["rows"] == 0


# -- in plain functions


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"prediction": 1.0}, {"prediction": 1.0}, 0.0),
        ({"prediction": 1.0}, {"prediction": 2.0}, 0.5),
        ({"prediction": 1.0}, {"prediction": -1.0}, 2.0),
        ({"prediction": 0}, {"prediction": 0}, 0.0),
        ({"prediction": "a"}, {"prediction": "b"}, 1.0),
        ({"prediction": True}, {"prediction": False}, 1.0),
        ({"prediction": {"a": 1}}, {"prediction": {"a": 1}}, 0.0),
        (
            {"prediction": 0, "probabilities": {"a": 0.75, "b": 0.25}},
            {"prediction": 1, "probabilities": {"a": 0.25, "b": 0.75}},
            0.5,
        ),
    ],
)
def test_a_difference_is_measured(old: Any, new: Any, expected: float) -> None:
    assert difference(old, new) == pytest.approx(expected)


def test_rows_are_tallied() -> None:
    tally = Tally()
    for new in (b'{"prediction":1.0},', b'{"prediction":1.001},', b'{"prediction":2.0},'):
        tally.compare(b'{"prediction":1.0},', new)
    assert (tally.rows, tally.agreeing, tally.agreement) == (3, 2, pytest.approx(2 / 3))
    assert [index for index, count in enumerate(tally.buckets) if count] == [0, 1, 6]
    assert tally.quantile(1.0) == 0.5
    tally.seconds.extend([(0.001, 0.002), (0.002, 0.006)])
    assert tally.latency == pytest.approx(4 / 1.5)
