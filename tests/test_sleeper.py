"""Models on demand: loaded by the first request, unloaded when idle, never more at once than may be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from casting import Registry
from conftest import NewRegistry
from live import Service, served, until
from pids import descendants


@pytest.fixture
def stock(new_registry: NewRegistry, tmp_path: Path) -> Registry:
    """A registry with three models that multiply by 1, 2 and 3."""
    registry = Registry(new_registry(tmp_path))
    for number, name in enumerate(("one", "two", "three"), 1):
        registry.promote(name, registry.add(name, factor=float(number)))
    return registry


@pytest.fixture
def service(stock: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service of the first one, the others on demand."""
    settings = {"idle_seconds": 3600, "most_loaded": 2} | getattr(request, "param", {})
    on_demand = "models:/two/Production,models:/three@best"
    stock.alias("three", "best", "1")
    with served(
        stock.uri, tmp_path, models="models:/one/Production", on_demand=on_demand, **settings
    ) as found:
        found.until_ready()
        yield found


def ask(service: Service, name: str, x: float = 5.0, **more: Any) -> httpx.Response:
    return service.client.post(f"/models/{name}/predict", json={"x": x}, **more)


def states(service: Service) -> dict[str, Any]:
    found = service.client.get("/ready")
    assert found.status_code == 200
    return {each["name"]: (each["required"], each["state"]) for each in found.json()["models"]}


def processes(service: Service) -> int:
    return len(descendants(service.process.pid))


def test_a_model_on_demand_is_loaded_by_whoever_asks_first(service: Service) -> None:
    before = processes(service)
    assert states(service) == {"one": (True, "live"), "two": (False, "asleep"), "three": (False, "asleep")}
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda x: ask(service, "two", x), range(20))]
    assert [answer.json()["prediction"] for answer in answers] == [x * 2.0 for x in range(20)]
    assert states(service)["two"] == (False, "live")
    assert processes(service) == before + 1
    assert "/models/two/predict" in service.client.get("/openapi.json").json()["paths"]
    assert "/models/three/predict" not in service.client.get("/openapi.json").json()["paths"]


def test_every_protocol_wakes_it_by_name_or_reference(service: Service) -> None:
    header = {"X-Model": "three@best"}
    assert service.client.post("/predict", json={"x": 1}, headers=header).json()["prediction"] == 3.0
    body = {"dataframe_records": [{"x": 1}]}
    assert service.client.post("/invocations?model=two", json=body).json() == {"predictions": [2.0]}


@pytest.mark.parametrize("service", [{"idle_seconds": 0.2}], indirect=True)
def test_it_falls_asleep_when_nobody_asks_and_wakes_to_what_was_promoted_meanwhile(
    service: Service, stock: Registry
) -> None:
    before = processes(service)
    assert ask(service, "two").json()["model"]["version"] == "1"
    until(lambda: states(service)["two"] == (False, "asleep"))
    until(lambda: processes(service) == before)
    stock.promote("two", stock.add("two", factor=20.0))
    answer = ask(service, "two").json()
    assert (answer["prediction"], answer["model"]["version"]) == (100.0, "2")


def test_a_promotion_is_followed_while_it_is_awake(service: Service, stock: Registry) -> None:
    assert ask(service, "two").json()["prediction"] == 10.0
    stock.promote("two", stock.add("two", factor=20.0))
    until(lambda: ask(service, "two").json()["prediction"] == 100.0)


@pytest.mark.parametrize("service", [{"most_loaded": 1}], indirect=True)
def test_one_that_is_idle_makes_room_for_another(service: Service) -> None:
    before = processes(service)
    for name, prediction in (("two", 10.0), ("three", 15.0), ("two", 10.0)):
        assert ask(service, name).json()["prediction"] == prediction
        assert processes(service) <= before + 1


@pytest.mark.parametrize("service", [{"most_loaded": 1}], indirect=True)
def test_one_that_is_busy_does_not(service: Service, tmp_path: Path) -> None:
    ask(service, "two")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        url = f"{service.url}/models/two/predict"
        busy = pool.submit(httpx.post, url, json={"x": 1, "act": f"wait:{pipe}"}, timeout=60)
        with pipe.open("wb"):  # which the model has opened by now, and reads to its end
            refused = ask(service, "three")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "busy" in refused.json()["detail"]
        assert busy.result().json()["prediction"] == 2.0
    assert ask(service, "three").json()["prediction"] == 15.0


def test_one_that_cannot_load_says_why_and_is_tried_again(stock: Registry, tmp_path: Path) -> None:
    stock.promote("two", stock.add("two", on_load="raise:no_such_thing"))
    on_demand = "models:/two/Production,models:/nobody/Production"
    with served(stock.uri, tmp_path, models="models:/one/Production", on_demand=on_demand) as service:
        service.until_ready()
        for name, reason in (("two", "loading it raised"), ("nobody", "nobody")):
            refused = ask(service, name)
            assert refused.status_code == 503
            assert reason in refused.json()["detail"]
        assert states(service)["two"] == (False, "asleep")
        stock.promote("two", stock.add("two", factor=7.0))
        until(lambda: ask(service, "two").status_code == 200)
