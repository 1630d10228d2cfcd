"""Models on demand: loaded by the first request, unloaded when idle, never more at once than may be."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from casting import Registry
from conftest import NewRegistry
from live import Service, served, until
from pids import descendants
from stage import Stage

from serving.errors import Asleep, NotLive
from serving.groups import Limits
from serving.http.predict import Predict
from serving.reference import Reference
from serving.registry.sleeper import Rota, Sleeper
from serving.runtime.slot import SlotOnDemand


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


@pytest.mark.parametrize("chosen", ["three/1", "models:/three/1", "three@best"])
def test_it_is_woken_by_whatever_may_mean_it(service: Service, chosen: str) -> None:
    answer = service.client.post("/predict", json={"x": 1}, headers={"X-Model": chosen})
    assert answer.json()["model"] == {"name": "three", "version": "1"}


def test_a_version_is_looked_for_in_what_is_asleep(service: Service) -> None:
    assert ask(service, "two/versions/7").status_code == 404
    assert states(service)["two"] == (False, "live")
    assert ask(service, "three/versions/1").json()["model"] == {"name": "three", "version": "1"}
    assert ask(service, "one/versions/7").status_code == 404


def test_a_header_that_contradicts_the_path_is_refused_once_it_is_awake(service: Service) -> None:
    assert ask(service, "two", headers={"X-Model": "one"}).status_code == 400
    assert ask(service, "two", headers={"X-Model": "two/1"}).status_code == 200


@pytest.mark.parametrize("service", [{"idle_seconds": 0.3}], indirect=True)
def test_who_looks_whether_it_is_ready_neither_wakes_it_nor_keeps_it_awake(service: Service) -> None:
    def is_ready() -> bool:
        return service.client.get("/v2/models/two/ready").status_code == 200

    assert not is_ready()
    assert states(service)["two"] == (False, "asleep")
    assert ask(service, "two").status_code == 200
    until(lambda: not is_ready())
    assert service.client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("service", [{"idle_seconds": 0.2}], indirect=True)
def test_a_version_that_went_live_in_its_sleep_supersedes_the_one_before(
    service: Service, stock: Registry
) -> None:
    ask(service, "two")
    until(lambda: states(service)["two"] == (False, "asleep"))
    stock.promote("two", stock.add("two", factor=20.0))
    assert ask(service, "two").json()["model"]["version"] == "2"
    until(lambda: stock.client.get_model_version("two", "1").tags["serving.state"] == "superseded")


BROKEN = {
    "does not load": {"on_load": "raise:no_such_thing"},
    "breaks clients": {"inputs": "x: double, y: double", "example": None},
}


@pytest.mark.parametrize("part", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("service", [{"idle_seconds": 0.2}], indirect=True)
def test_what_is_refused_in_its_sleep_leaves_the_version_before_in_service(
    service: Service, stock: Registry, part: dict[str, Any]
) -> None:
    ask(service, "two")
    until(lambda: states(service)["two"] == (False, "asleep"))
    stock.promote("two", stock.add("two", **part))
    for _ in range(2):
        assert ask(service, "two").json()["model"]["version"] == "1"
        candidate = service.client.get("/models/two").json()["candidate"]
        assert (candidate["version"], candidate["state"]) == ("2", "rejected")
        until(lambda: states(service)["two"] == (False, "asleep"))
    assert stock.client.get_model_version("two", "2").tags["serving.state"] == "rejected"
    stock.promote("two", stock.add("two", factor=20.0))
    assert ask(service, "two").json()["model"]["version"] == "3"


@pytest.mark.parametrize("service", [{"max_waiting": 2, "deadline_seconds": 30}], indirect=True)
def test_only_so_many_wait_for_it(service: Service, stock: Registry, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stock.promote("two", stock.add("two", factor=2.0, on_load=f"wait:{pipe}"))
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, service, "two") for _ in range(5)]
        until(lambda: sum(each.done() for each in asked) == 3)
        assert states(service)["two"] == (False, "waking")
        pipe.write_bytes(b"")
        assert sorted(each.result().status_code for each in asked) == [200, 200, 503, 503, 503]


@pytest.mark.parametrize("service", [{"deadline_seconds": 0.5}], indirect=True)
def test_who_cannot_wait_so_long_is_told_and_the_next_is_answered(
    service: Service, stock: Registry, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stock.promote("two", stock.add("two", factor=2.0, on_load=f"wait:{pipe}"))
    refused = ask(service, "two")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "is loading" in refused.json()["detail"]
    pipe.write_bytes(b"")
    until(lambda: states(service)["two"] == (False, "live"))
    assert ask(service, "two").json()["prediction"] == 10.0


# -- by the clock


class Clock:
    """The monotonic clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


NewSleeper = Callable[..., Sleeper]


@pytest.fixture
def new_sleeper(stage: Stage, clock: Clock) -> NewSleeper:
    """Make a sleeper for a reference: it sleeps after a minute."""

    def make(reference: str = "models:/actor/1", rota: Rota | None = None) -> Sleeper:
        slot = SlotOnDemand(Reference.parse(reference), recorded=10, most_waiting=10)
        return Sleeper(stage.follow(slot=slot), slot, rota or Rota(1), 60, clock)

    return make


@asynccontextmanager
async def running(*sleepers: Sleeper) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in sleepers]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def use(sleeper: Sleeper) -> None:
    async with sleeper.slot.awaken(30):
        with sleeper.slot.lease():
            pass


@pytest.mark.anyio
async def test_it_is_idle_from_the_end_of_its_last_request(
    stage: Stage, new_sleeper: NewSleeper, clock: Clock
) -> None:
    stage.registry.add("actor")
    sleeper = new_sleeper()
    assert await sleeper.wake()
    with sleeper.slot.lease():
        clock.ahead = 1000
        assert sleeper.idle_for() == 60
        assert not sleeper.may_rest
        clock.ahead = 0
    assert 0 < sleeper.idle_for() <= 60
    assert sleeper.may_rest
    clock.ahead = 60
    assert sleeper.idle_for() <= 0
    await sleeper.sleep()
    assert (sleeper.slot.state, sleeper.slot.reason) == ("asleep", "it is asleep")


@pytest.mark.anyio
async def test_one_that_takes_longer_to_load_than_it_may_be_idle_stays_awake(
    stage: Stage, new_sleeper: NewSleeper, clock: Clock, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stage.registry.add("actor", on_load=f"wait:{pipe}")
    sleeper = new_sleeper()
    waking = asyncio.create_task(sleeper.wake())
    with await asyncio.to_thread(pipe.open, "wb"):
        clock.ahead = 1000
    assert await waking
    assert 0 < sleeper.idle_for() <= 60


@pytest.mark.anyio
async def test_what_failed_to_load_is_not_tried_again_at_once(
    stage: Stage, new_sleeper: NewSleeper, clock: Clock, tmp_path: Path
) -> None:
    """It loads where it is the second to do so."""
    mark = tmp_path / "mark"
    mark.touch()
    stage.registry.add("actor", on_load=f"once:{mark}")
    sleeper = new_sleeper()
    async with running(sleeper):
        with pytest.raises(NotLive, match="FileExistsError"):
            await use(sleeper)
        mark.unlink()
        with pytest.raises(NotLive, match="FileExistsError"):
            await use(sleeper)
        assert "FileExistsError" in sleeper.slot.reason
        clock.ahead = 10
        await use(sleeper)
        assert sleeper.slot.state == "live"


@pytest.mark.anyio
async def test_the_one_that_has_been_idle_for_longest_makes_room(
    stage: Stage, new_sleeper: NewSleeper
) -> None:
    rota = Rota(2)
    for name in "abc":
        stage.registry.add(name)
    a, b, c = (new_sleeper(f"models:/{name}/1", rota) for name in "abc")
    async with running(a, b, c):
        for each in (a, b, a, c):
            await use(each)
        assert [each.slot.state for each in (a, b, c)] == ["live", "asleep", "live"]


@pytest.mark.anyio
async def test_the_time_to_wake_is_part_of_the_requests(stage: Stage, new_sleeper: NewSleeper) -> None:
    stage.registry.add("actor")
    sleeper = new_sleeper()
    predict = Predict(lambda _: sleeper.slot.lease(), Limits())
    scope: dict[str, Any] = {}
    with pytest.raises(Asleep) as asleep:
        sleeper.slot.lease()
    async with running(sleeper):
        with await predict._woken(asleep.value, scope) as leased:
            assert leased is sleeper.slot.live
    assert predict.seconds({}) == Limits().deadline_seconds
    assert 0 < predict.seconds(scope) < Limits().deadline_seconds
