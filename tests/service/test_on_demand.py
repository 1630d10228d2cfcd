"""Models on demand are loaded by their first request, unloaded when idle, and limited in number."""

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

from serving.dataplane import DataPlane
from serving.errors import NotLive, NotLoaded
from serving.models.on_demand_slot import SlotOnDemand
from serving.models.selector import ModelSelector
from serving.reference import Reference
from serving.registry.on_demand import LoadedModelLimit, OnDemandModel
from serving.request_context import RequestContext
from serving.settings.groups import LimitSettings
from serving.telemetry.metrics import Metrics
from tests.support.followers import FollowerHarness
from tests.support.process_ids import descendants
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, served, until

KINDS: dict[str, dict[str, Any]] = {
    "patient": {"idle_seconds": 3600, "max_loaded": 50},
    "sleepy": {"idle_seconds": 0.2, "max_loaded": 50, "max_queue_size": 2, "deadline_seconds": 30},
    "narrow": {"idle_seconds": 3600, "max_loaded": 1},
    "hasty": {"idle_seconds": 3600, "max_loaded": 50, "deadline_seconds": 0.5},
}
MAX_TESTS = 10


@dataclass(frozen=True, slots=True)
class Place:
    """A service of a model `one` and two on-demand models, which multiply by 1, 2 and 3."""

    service: Service
    stock: Registry
    two: str
    three: str

    def ask(self, name: str, x: float = 5.0, **more: Any) -> httpx.Response:
        return self.service.client.post(f"/models/{name}/predict", json={"x": x}, **more)

    def state(self, name: str) -> tuple[bool, str]:
        """Return whether the model is required, and its state."""
        response = self.service.client.get("/ready")
        assert response.status_code == 200
        return next(
            (each["required"], each["state"]) for each in response.json()["models"] if each["name"] == name
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
    """Share one service among all tests with the same settings; every test has its own models."""
    folder = tmp_path_factory.mktemp(request.param)
    stock = Registry(new_registry(folder))
    stock.promote("one", stock.add("one"))
    two, three = (save_scripted_model(stock.folder, factor=factor) for factor in (2.0, 3.0))
    on_demand = ["models:/nobody/Production"]
    for number in range(MAX_TESTS):
        stock.promote(f"two-{number}", stock.register(f"two-{number}", two))
        stock.alias(f"three-{number}", "best", stock.register(f"three-{number}", three))
        on_demand += [f"models:/two-{number}/Production", f"models:/three-{number}@best"]
    settings = KINDS[request.param] | {"models": "models:/one/Production", "on_demand": ",".join(on_demand)}
    with served(stock.uri, folder, **settings) as service:
        service.until_ready()
        yield (Place(service, stock, f"two-{number}", f"three-{number}") for number in range(MAX_TESTS))


@pytest.fixture
def place(places: Iterator[Place]) -> Place:
    return next(places)


def on(kind: str) -> pytest.MarkDecorator:
    """Run a test on a service with these settings."""
    return pytest.mark.parametrize("places", [kind], indirect=True)


@on("patient")
def test_model_on_demand_is_loaded_by_the_first_request(place: Place) -> None:
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
def test_every_protocol_loads_model_by_name_or_reference(place: Place) -> None:
    header = {"X-Model": f"{place.three}@best"}
    assert place.service.client.post("/predict", json={"x": 1}, headers=header).json()["prediction"] == 3.0
    body = {"dataframe_records": [{"x": 1}]}
    url = f"/invocations?model={place.two}"
    assert place.service.client.post(url, json=body).json() == {"predictions": [2.0]}


@on("patient")
def test_promotion_is_followed_while_model_is_loaded(place: Place) -> None:
    assert place.ask(place.two).json()["prediction"] == 10.0
    place.promote(place.two, factor=20.0)
    until(lambda: place.ask(place.two).json()["prediction"] == 100.0)


@on("patient")
def test_load_failure_is_reported_and_retried(place: Place) -> None:
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
def test_ambiguous_requests_load_the_model(place: Place, chosen: str) -> None:
    header = {"X-Model": chosen.format(place.three)}
    answer = place.service.client.post("/predict", json={"x": 1}, headers=header)
    assert answer.json()["model"] == {"name": place.three, "version": "1"}


@on("patient")
def test_pinned_version_of_an_unloaded_model_is_loaded(place: Place) -> None:
    assert place.ask(f"{place.two}/versions/7").status_code == 404
    assert place.state(place.two) == (False, "live")
    model = place.ask(f"{place.three}/versions/1").json()["model"]
    assert model == {"name": place.three, "version": "1"}
    assert place.ask("one/versions/7").status_code == 404


@on("patient")
def test_contradictory_header_is_rejected_after_loading(place: Place) -> None:
    assert place.ask(place.two, headers={"X-Model": "one"}).status_code == 400
    assert place.ask(place.two, headers={"X-Model": f"{place.two}/1"}).status_code == 200


@on("sleepy")
def test_idle_model_unloads_and_reloads_the_promoted_version(place: Place) -> None:
    before = place.processes()
    assert place.ask(place.two).json()["model"]["version"] == "1"
    place.until_asleep(place.two)
    until(lambda: place.processes() <= before)
    place.promote(place.two, factor=20.0)
    answer = place.ask(place.two).json()
    assert (answer["prediction"], answer["model"]["version"]) == (100.0, "2")


@on("sleepy")
def test_readiness_checks_do_not_load_or_retain_model(place: Place) -> None:
    def is_ready() -> bool:
        return place.service.client.get(f"/v2/models/{place.two}/ready").status_code == 200

    assert not is_ready()
    assert place.state(place.two) == (False, "asleep")
    assert place.ask(place.two).status_code == 200
    until(lambda: not is_ready())
    assert place.service.client.get("/v2/health/ready").status_code == 200


@on("sleepy")
def test_version_promoted_while_unloaded_supersedes_its_predecessor(place: Place) -> None:
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
def test_version_rejected_while_unloaded_keeps_predecessor_live(place: Place, part: dict[str, Any]) -> None:
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
def test_waiting_requests_are_limited(place: Place, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place.promote(place.two, factor=2.0, on_load=f"wait:{pipe}")
    with ThreadPoolExecutor(5) as pool:
        requests = [pool.submit(place.ask, place.two) for _ in range(5)]
        until(lambda: sum(each.done() for each in requests) == 3)
        assert place.state(place.two) == (False, "waking")
        pipe.write_bytes(b"")
        assert sorted(each.result().status_code for each in requests) == [200, 200, 503, 503, 503]


@on("narrow")
def test_idle_model_is_evicted_for_another(place: Place) -> None:
    before = place.processes()
    for name, prediction in ((place.two, 10.0), (place.three, 15.0), (place.two, 10.0)):
        assert place.ask(name).json()["prediction"] == prediction
        assert place.processes() <= before + 1


@on("narrow")
def test_busy_model_is_not_evicted(place: Place, tmp_path: Path) -> None:
    place.ask(place.two)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        url = f"{place.service.url}/models/{place.two}/predict"
        busy = pool.submit(httpx.post, url, json={"x": 1, "act": f"wait:{pipe}"}, timeout=60)
        with pipe.open("wb"):  # the model has opened the pipe and reads until its end
            refused = place.ask(place.three)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "busy" in refused.json()["detail"]
        assert busy.result().json()["prediction"] == 2.0
    assert place.ask(place.three).json()["prediction"] == 15.0


@on("hasty")
def test_request_that_cannot_wait_fails_and_the_next_succeeds(place: Place, tmp_path: Path) -> None:
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
    """The monotonic clock, which tests can advance."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


NewSleeper = Callable[..., OnDemandModel]


@pytest.fixture
def new_model(harness: FollowerHarness, clock: Clock) -> NewSleeper:
    """Create a model for a reference; it is unloaded after an idle minute."""

    def make(reference: str = "models:/actor/1", limit: LoadedModelLimit | None = None) -> OnDemandModel:
        slot = SlotOnDemand(Reference.parse(reference), recorded=10, max_waiting=10)
        return OnDemandModel(harness.follow(slot=slot), slot, limit or LoadedModelLimit(1), 60, clock)

    return make


@asynccontextmanager
async def running(*sleepers: OnDemandModel) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in sleepers]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def use(model: OnDemandModel) -> None:
    async with model.slot.ensure_loaded(30):
        with model.slot.lease():
            pass


@pytest.mark.anyio
async def test_idle_time_starts_at_the_end_of_the_last_request(
    harness: FollowerHarness, new_model: NewSleeper, clock: Clock
) -> None:
    harness.registry.add("actor")
    model = new_model()
    assert await model.load()
    with model.slot.lease():
        clock.ahead = 1000
        assert model.seconds_until_idle() == 60
        assert not model.is_evictable
        clock.ahead = 0
    assert 0 < model.seconds_until_idle() <= 60
    assert model.is_evictable
    clock.ahead = 60
    assert model.seconds_until_idle() <= 0
    await model.unload()
    assert (model.slot.state, model.slot.reason) == ("asleep", "it is asleep")


@pytest.mark.anyio
async def test_load_longer_than_the_idle_time_is_kept(
    harness: FollowerHarness, new_model: NewSleeper, clock: Clock, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    harness.registry.add("actor", on_load=f"wait:{pipe}")
    model = new_model()
    waking = asyncio.create_task(model.load())
    with await asyncio.to_thread(pipe.open, "wb"):
        clock.ahead = 1000
    assert await waking
    assert 0 < model.seconds_until_idle() <= 60


@pytest.mark.anyio
async def test_failed_load_is_not_retried_immediately(
    harness: FollowerHarness, new_model: NewSleeper, clock: Clock, tmp_path: Path
) -> None:
    """Load only at the second attempt."""
    mark = tmp_path / "mark"
    mark.touch()
    harness.registry.add("actor", on_load=f"once:{mark}")
    model = new_model()
    async with running(model):
        with pytest.raises(NotLive, match="FileExistsError"):
            await use(model)
        mark.unlink()
        with pytest.raises(NotLive, match="FileExistsError"):
            await use(model)
        assert "FileExistsError" in model.slot.reason
        clock.ahead = 10
        await use(model)
        assert model.slot.state == "live"


@pytest.mark.anyio
async def test_longest_idle_model_is_evicted_first(harness: FollowerHarness, new_model: NewSleeper) -> None:
    limit = LoadedModelLimit(2)
    for name in "abc":
        harness.registry.add(name)
    a, b, c = (new_model(f"models:/{name}/1", limit) for name in "abc")
    async with running(a, b, c):
        for each in (a, b, a, c):
            await use(each)
        assert [each.slot.state for each in (a, b, c)] == ["live", "asleep", "live"]


@pytest.mark.anyio
async def test_load_time_counts_towards_the_deadline(harness: FollowerHarness, new_model: NewSleeper) -> None:
    harness.registry.add("actor")
    model = new_model()
    models = ModelSelector([model.slot])
    dataplane = DataPlane(models, LimitSettings(), Metrics())
    context = RequestContext("one", "POST", "/predict", (), None, {})
    with pytest.raises(NotLoaded):
        models.lease()
    assert dataplane.seconds_left(context) == LimitSettings().deadline_seconds
    async with running(model):
        with await dataplane.lease(context, lambda _: models.lease()) as leased:
            assert leased is model.slot.live
    assert 0 < dataplane.seconds_left(context) < LimitSettings().deadline_seconds
