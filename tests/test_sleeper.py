"""Models on demand: loaded by the first request, unloaded when idle, never more at once than may be."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from casting import Registry, actor
from conftest import NewRegistry
from live import Service, served, until
from pids import descendants
from stage import Stage

from serving.dataplane import DataPlane
from serving.errors import NotLive, NotLoaded
from serving.models.selector import ModelSelector
from serving.models.slot import SlotOnDemand
from serving.reference import Reference
from serving.registry.on_demand import LoadedModelLimit, OnDemandModel
from serving.request_context import RequestContext
from serving.settings.groups import LimitSettings
from serving.telemetry.metrics import Metrics

KINDS: dict[str, dict[str, Any]] = {
    "patient": {"idle_seconds": 3600, "most_loaded": 50},
    "sleepy": {"idle_seconds": 0.2, "most_loaded": 50, "max_waiting": 2, "deadline_seconds": 30},
    "narrow": {"idle_seconds": 3600, "most_loaded": 1},
    "hasty": {"idle_seconds": 3600, "most_loaded": 50, "deadline_seconds": 0.5},
}
MOST_TESTS = 10


@dataclass(frozen=True, slots=True)
class Place:
    """A service of a model `one`, and two on demand: they multiply by 1, 2 and 3."""

    service: Service
    stock: Registry
    two: str
    three: str

    def ask(self, name: str, x: float = 5.0, **more: Any) -> httpx.Response:
        return self.service.client.post(f"/models/{name}/predict", json={"x": x}, **more)

    def state(self, name: str) -> tuple[bool, str]:
        """Whether it has to be live, and how it is."""
        found = self.service.client.get("/ready")
        assert found.status_code == 200
        return next(
            (each["required"], each["state"]) for each in found.json()["models"] if each["name"] == name
        )

    def until_asleep(self, name: str) -> None:
        until(lambda: self.state(name) == (False, "asleep"))

    def promote(self, name: str, **part: Any) -> None:
        self.stock.promote(name, self.stock.add(name, **part))

    def processes(self) -> int:
        return len(descendants(self.service.process.pid))


@pytest.fixture(scope="module")
def places(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Iterator[Place]]:
    """A service of a kind for all tests, with models of its own for each: it takes seconds to start."""
    folder = tmp_path_factory.mktemp(request.param)
    stock = Registry(new_registry(folder))
    stock.promote("one", stock.add("one"))
    two, three = (actor(stock.folder, factor=factor) for factor in (2.0, 3.0))
    on_demand = ["models:/nobody/Production"]
    for number in range(MOST_TESTS):
        stock.promote(f"two-{number}", stock.register(f"two-{number}", two))
        stock.alias(f"three-{number}", "best", stock.register(f"three-{number}", three))
        on_demand += [f"models:/two-{number}/Production", f"models:/three-{number}@best"]
    settings = KINDS[request.param] | {"models": "models:/one/Production", "on_demand": ",".join(on_demand)}
    with served(stock.uri, folder, **settings) as service:
        service.until_ready()
        yield (Place(service, stock, f"two-{number}", f"three-{number}") for number in range(MOST_TESTS))


@pytest.fixture
def place(places: Iterator[Place]) -> Place:
    return next(places)


def on(kind: str) -> pytest.MarkDecorator:
    """A test on a service of this kind."""
    return pytest.mark.parametrize("places", [kind], indirect=True)


@on("patient")
def test_a_model_on_demand_is_loaded_by_whoever_asks_first(place: Place) -> None:
    before = place.processes()
    assert [place.state(name) for name in ("one", place.two, place.three)] == [
        (True, "live"),
        (False, "asleep"),
        (False, "asleep"),
    ]
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda x: place.ask(place.two, x), range(20))]
    assert [answer.json()["prediction"] for answer in answers] == [x * 2.0 for x in range(20)]
    assert place.state(place.two) == (False, "live")
    assert place.processes() == before + 1
    paths = place.service.client.get("/openapi.json").json()["paths"]
    assert f"/models/{place.two}/predict" in paths
    assert f"/models/{place.three}/predict" not in paths


@on("patient")
def test_every_protocol_wakes_it_by_name_or_reference(place: Place) -> None:
    header = {"X-Model": f"{place.three}@best"}
    assert place.service.client.post("/predict", json={"x": 1}, headers=header).json()["prediction"] == 3.0
    body = {"dataframe_records": [{"x": 1}]}
    url = f"/invocations?model={place.two}"
    assert place.service.client.post(url, json=body).json() == {"predictions": [2.0]}


@on("patient")
def test_a_promotion_is_followed_while_it_is_awake(place: Place) -> None:
    assert place.ask(place.two).json()["prediction"] == 10.0
    place.promote(place.two, factor=20.0)
    until(lambda: place.ask(place.two).json()["prediction"] == 100.0)


@on("patient")
def test_one_that_cannot_load_says_why_and_is_tried_again(place: Place) -> None:
    place.promote(place.two, on_load="raise:no_such_thing")
    for name, reason in ((place.two, "loading it raised"), ("nobody", "nobody")):
        refused = place.ask(name)
        assert refused.status_code == 503
        assert reason in refused.json()["detail"]
    assert place.state(place.two) == (False, "asleep")
    place.promote(place.two, factor=7.0)
    until(lambda: place.ask(place.two).status_code == 200)


@on("patient")
@pytest.mark.parametrize("chosen", ["{}/1", "models:/{}/1", "{}@best"])
def test_it_is_woken_by_whatever_may_mean_it(place: Place, chosen: str) -> None:
    header = {"X-Model": chosen.format(place.three)}
    answer = place.service.client.post("/predict", json={"x": 1}, headers=header)
    assert answer.json()["model"] == {"name": place.three, "version": "1"}


@on("patient")
def test_a_version_is_looked_for_in_what_is_asleep(place: Place) -> None:
    assert place.ask(f"{place.two}/versions/7").status_code == 404
    assert place.state(place.two) == (False, "live")
    found = place.ask(f"{place.three}/versions/1").json()["model"]
    assert found == {"name": place.three, "version": "1"}
    assert place.ask("one/versions/7").status_code == 404


@on("patient")
def test_a_header_that_contradicts_the_path_is_refused_once_it_is_awake(place: Place) -> None:
    assert place.ask(place.two, headers={"X-Model": "one"}).status_code == 400
    assert place.ask(place.two, headers={"X-Model": f"{place.two}/1"}).status_code == 200


@on("sleepy")
def test_it_falls_asleep_when_nobody_asks_and_wakes_to_what_was_promoted_meanwhile(place: Place) -> None:
    before = place.processes()
    assert place.ask(place.two).json()["model"]["version"] == "1"
    place.until_asleep(place.two)
    until(lambda: place.processes() <= before)
    place.promote(place.two, factor=20.0)
    answer = place.ask(place.two).json()
    assert (answer["prediction"], answer["model"]["version"]) == (100.0, "2")


@on("sleepy")
def test_who_looks_whether_it_is_ready_neither_wakes_it_nor_keeps_it_awake(place: Place) -> None:
    def is_ready() -> bool:
        return place.service.client.get(f"/v2/models/{place.two}/ready").status_code == 200

    assert not is_ready()
    assert place.state(place.two) == (False, "asleep")
    assert place.ask(place.two).status_code == 200
    until(lambda: not is_ready())
    assert place.service.client.get("/v2/health/ready").status_code == 200


@on("sleepy")
def test_a_version_that_went_live_in_its_sleep_supersedes_the_one_before(place: Place) -> None:
    place.ask(place.two)
    place.until_asleep(place.two)
    place.promote(place.two, factor=20.0)
    assert place.ask(place.two).json()["model"]["version"] == "2"
    first = place.stock.client.get_model_version
    until(lambda: first(place.two, "1").tags.get("serving.state") == "superseded")


BROKEN = {
    "does not load": {"on_load": "raise:no_such_thing"},
    "breaks clients": {"inputs": "x: double, y: double", "example": None},
}


@on("sleepy")
@pytest.mark.parametrize("part", BROKEN.values(), ids=BROKEN)
def test_what_is_refused_in_its_sleep_leaves_the_version_before_in_service(
    place: Place, part: dict[str, Any]
) -> None:
    place.ask(place.two)
    place.until_asleep(place.two)
    place.promote(place.two, **part)
    for _ in range(2):
        assert place.ask(place.two).json()["model"]["version"] == "1"
        candidate = place.service.client.get(f"/models/{place.two}").json()["candidate"]
        assert (candidate["version"], candidate["state"]) == ("2", "rejected")
        place.until_asleep(place.two)
    assert place.stock.client.get_model_version(place.two, "2").tags["serving.state"] == "rejected"
    place.promote(place.two, factor=20.0)
    assert place.ask(place.two).json()["model"]["version"] == "3"


@on("sleepy")
def test_only_so_many_wait_for_it(place: Place, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place.promote(place.two, factor=2.0, on_load=f"wait:{pipe}")
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(place.ask, place.two) for _ in range(5)]
        until(lambda: sum(each.done() for each in asked) == 3)
        assert place.state(place.two) == (False, "waking")
        pipe.write_bytes(b"")
        assert sorted(each.result().status_code for each in asked) == [200, 200, 503, 503, 503]


@on("narrow")
def test_one_that_is_idle_makes_room_for_another(place: Place) -> None:
    before = place.processes()
    for name, prediction in ((place.two, 10.0), (place.three, 15.0), (place.two, 10.0)):
        assert place.ask(name).json()["prediction"] == prediction
        assert place.processes() <= before + 1


@on("narrow")
def test_one_that_is_busy_does_not(place: Place, tmp_path: Path) -> None:
    place.ask(place.two)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        url = f"{place.service.url}/models/{place.two}/predict"
        busy = pool.submit(httpx.post, url, json={"x": 1, "act": f"wait:{pipe}"}, timeout=60)
        with pipe.open("wb"):  # which the model has opened by now, and reads to its end
            refused = place.ask(place.three)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "busy" in refused.json()["detail"]
        assert busy.result().json()["prediction"] == 2.0
    assert place.ask(place.three).json()["prediction"] == 15.0


@on("hasty")
def test_who_cannot_wait_so_long_is_told_and_the_next_is_answered(place: Place, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place.promote(place.two, factor=2.0, on_load=f"wait:{pipe}")
    refused = place.ask(place.two)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "is loading" in refused.json()["detail"]
    pipe.write_bytes(b"")
    until(lambda: place.state(place.two) == (False, "live"))
    assert place.ask(place.two).json()["prediction"] == 10.0


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


NewSleeper = Callable[..., OnDemandModel]


@pytest.fixture
def new_sleeper(stage: Stage, clock: Clock) -> NewSleeper:
    """Make a sleeper for a reference: it sleeps after a minute."""

    def make(reference: str = "models:/actor/1", rota: LoadedModelLimit | None = None) -> OnDemandModel:
        slot = SlotOnDemand(Reference.parse(reference), recorded=10, most_waiting=10)
        return OnDemandModel(stage.follow(slot=slot), slot, rota or LoadedModelLimit(1), 60, clock)

    return make


@asynccontextmanager
async def running(*sleepers: OnDemandModel) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in sleepers]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def use(sleeper: OnDemandModel) -> None:
    async with sleeper.slot.awaken(30):
        with sleeper.slot.lease():
            pass


@pytest.mark.anyio
async def test_it_is_idle_from_the_end_of_its_last_request(
    stage: Stage, new_sleeper: NewSleeper, clock: Clock
) -> None:
    stage.registry.add("actor")
    sleeper = new_sleeper()
    assert await sleeper.load()
    with sleeper.slot.lease():
        clock.ahead = 1000
        assert sleeper.idle_for() == 60
        assert not sleeper.is_evictable
        clock.ahead = 0
    assert 0 < sleeper.idle_for() <= 60
    assert sleeper.is_evictable
    clock.ahead = 60
    assert sleeper.idle_for() <= 0
    await sleeper.evict_when_idle()
    assert (sleeper.slot.state, sleeper.slot.reason) == ("asleep", "it is asleep")


@pytest.mark.anyio
async def test_one_that_takes_longer_to_load_than_it_may_be_idle_stays_awake(
    stage: Stage, new_sleeper: NewSleeper, clock: Clock, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stage.registry.add("actor", on_load=f"wait:{pipe}")
    sleeper = new_sleeper()
    waking = asyncio.create_task(sleeper.load())
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
    rota = LoadedModelLimit(2)
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
    dataplane = DataPlane(ModelSelector([sleeper.slot]), LimitSettings(), Metrics())
    context = RequestContext("one", "POST", "/predict", (), None, {})
    with pytest.raises(NotLoaded):
        sleeper.slot.lease()
    assert dataplane.seconds_left(context) == LimitSettings().deadline_seconds
    async with running(sleeper):
        with await dataplane.lease(context, lambda _: sleeper.slot.lease()) as leased:
            assert leased is sleeper.slot.live
    assert 0 < dataplane.seconds_left(context) < LimitSettings().deadline_seconds
