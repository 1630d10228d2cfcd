"""Each request receives the model's own prediction, regardless of concurrent requests."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar

import httpx
import mlflow
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array

from serving.app import create_app
from serving.batching.sharing_proof import reported
from serving.models.loaded_model import LoadedModel
from serving.settings.settings import Settings
from tests.support.contracts import columns
from tests.support.registry import NewRegistry, Registry, quiet

SHAPES = Path(__file__).parents[1] / "support" / "row_count_models.py"
OPTIONAL = "x: double, unit: string?, w: double?, b: boolean?"
NUMBER, TEXT = Schema([ColSpec("double")]), Schema([ColSpec("string")])
OUTPUTS = {
    "shops": Schema([ColSpec(Array("string"), "shops")]),
    "columns": Schema(columns("low: double, high: double")),
    "records": Schema(columns("label: string, score: double")),
    "names": TEXT,
    "weigh": TEXT,
    "best": TEXT,
    "pair": None,
}
FORMS = (
    "twice",
    "late",
    "share",
    "count",
    "drop",
    "forecast",
    "ranked",
    "shops",
    "columns",
    "records",
    "pair",
)
NAMES = (*FORMS, "names", "weigh", "pooled", "best")
EXAMPLE = pd.DataFrame({"x": [1.0, 2.0, 4.0]})
BUSY = {"x": -2000.0}
"""A row that keeps the model busy until the test writes to its pipe."""


def save(folder: Path, shape: str, pipe: Path, example: pd.DataFrame | None, **metadata: Any) -> Path:
    inputs = OPTIONAL if shape == "weigh" else "x: double"
    with quiet():
        mlflow.pyfunc.save_model(
            folder,
            python_model=SHAPES,
            signature=ModelSignature(Schema(columns(inputs)), OUTPUTS.get(shape, NUMBER)),
            input_example=example,
            pip_requirements=[],
            metadata={"serving": metadata} if metadata else None,
            model_config={"shape": shape, "wait": str(pipe)},
        )
    return folder


T = TypeVar("T")


def in_service(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop of its service."""

    @functools.wraps(test)
    def run(service: Service, **fixtures: Any) -> None:
        service.do(test(service=service, **fixtures))

    return run


class Service:
    """A service in this process."""

    def __init__(self, settings: Settings, folder: Path, pipe: Path) -> None:
        self.settings, self._folder, self._pipe = settings, folder, pipe
        self.app: Any = None
        self.client: Any = None
        self._alone: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run the service in its own thread."""
        self._thread.start()
        stack = AsyncExitStack()
        try:
            self.do(self._start(stack))
            yield self
            self.do(stack.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _start(self, stack: AsyncExitStack) -> None:
        self.app = create_app(self.settings)
        await stack.enter_async_context(self.app.router.lifespan_context(self.app))
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://testserver", timeout=60
        )
        self.client = await stack.enter_async_context(client)
        for slot in self.app.slots:
            await slot.ready.wait()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread of the service, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(100)

    def live(self, name: str) -> LoadedModel:
        (found,) = [slot.live for slot in self.app.slots if slot.reference.name == name]
        return found

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **more)

    async def together(self, name: str, *requests: tuple[str, Any]) -> list[httpx.Response]:
        """Send requests that queue together behind a request that keeps the model busy."""
        calls = self.live(name).calls
        busy = asyncio.create_task(self.post(f"/models/{name}/predict", BUSY))
        while not calls.in_progress:  # noqa: ASYNC110  # the next iteration of the loop may change it
            await asyncio.sleep(0)
        tasks = [asyncio.create_task(self.post(path, body)) for path, body in requests]
        while calls.waiting < len(requests):  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.to_thread(self._pipe.write_text, "go")
        await busy
        return [await each for each in tasks]

    def pyfunc(self, name: str, rows: list[dict[str, Any]]) -> Any:
        """Return the output of pyfunc for these rows, in JSON types."""
        if name not in self._alone:
            self._alone[name] = mlflow.pyfunc.load_model(str(self._folder / name))
        with quiet():
            answer = self._alone[name].predict(pd.DataFrame(rows))
        if isinstance(answer, pd.DataFrame):
            return answer.to_dict("records")
        if isinstance(answer, pd.Series):
            return pd.DataFrame(answer).to_dict("records")
        return answer.tolist() if hasattr(answer, "tolist") else answer


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("shapes")
    registry, pipe = Registry(new_registry(folder)), folder / "pipe"
    os.mkfifo(pipe)
    for name in NAMES:
        registry.register(name, save(folder / name, name, pipe, EXAMPLE))
    registry.register("bare", save(folder / "bare", "twice", pipe, None))
    registry.register("trusted", save(folder / "trusted", "share", pipe, EXAMPLE, batching=True))
    registry.register("careful", save(folder / "careful", "twice", pipe, EXAMPLE, batching=False))
    registry.register("moody", save(folder / "moody", "drop", pipe, EXAMPLE))
    names = (*NAMES, "bare", "trusted", "careful", "moody")
    settings_ = Settings(
        models=",".join(f"models:/{name}/1" for name in names),
        tracking_uri=registry.uri,
        store_dir=folder / "store",
        preload=(),
        deadline_seconds=60,
    )
    with Service(settings_, folder, pipe).running() as running:
        yield running


# -- decision on sharing


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        *((name, True) for name in ("twice", "late", "columns", "records", "pair", "names", "drop")),
        *((name, False) for name in ("share", "count", "forecast", "ranked", "shops", "pooled", "best")),
        ("trusted", True),
        ("careful", False),
        ("bare", False),
    ],
)
@in_service
async def test_sharing_requires_proof_or_metadata(service: Service, name: str, shared: bool) -> None:
    sharing = service.live(name).calls.sharing
    assert sharing.allowed is shared, sharing
    ready = (await service.client.get("/ready")).json()
    (state,) = [model for model in ready["models"] if model["name"] == name]
    assert state["batching"] == sharing.as_json()


# -- single requests

ROWS: dict[str, list[list[dict[str, Any]]]] = {
    name: [[{"x": 3.0}], [{"x": 1.0}, {"x": 2.0}, {"x": 5.0}]] for name in NAMES
} | {
    "drop": [[{"x": -1.0}], [{"x": 1.0}, {"x": -1.0}, {"x": 2.0}]],
    "names": [[{"x": -1.0}], [{"x": 1.0}, {"x": -1.0}], [{"x": -1.0}, {"x": -2.0}]],
    "weigh": [
        [{"x": 2.0}],
        [{"x": 2.0, "unit": None, "w": None, "b": None}],
        [{"x": 2.0, "unit": "g", "w": 0.5, "b": False}],
        [{"x": 2.0}, {"x": 3.0, "unit": "g", "w": 0.5, "b": False}],
        [{"x": 2.0, "unit": None}, {"x": 3.0}, {"x": 4.0, "unit": "g"}],
    ],
}


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def per_row(answer: Any) -> list[Any]:
    """Return an output of pyfunc as one result per row, as the typed endpoints render it."""
    if isinstance(answer, dict):
        return [dict(zip(answer, row, strict=True)) for row in zip(*answer.values(), strict=True)]
    return [next(iter(row.values())) if isinstance(row, dict) and len(row) == 1 else row for row in answer]


@pytest.mark.parametrize("name", NAMES)
@in_service
async def test_every_protocol_returns_pyfunc_output(service: Service, name: str) -> None:
    for rows in ROWS[name]:
        expected = as_json(service.pyfunc(name, rows))
        body = {"dataframe_records": rows}
        scored = await service.post("/invocations", body, params={"model": name})
        assert scored.json() == {"predictions": expected}, rows
        batch = await service.post(f"/models/{name}/predict/batch", {"rows": rows})
        if service.live(name).contract.is_whole:
            assert batch.json()["predictions"] == expected
        elif len(per_row(expected)) == len(rows):
            assert [each["prediction"] for each in batch.json()["predictions"]] == per_row(expected)
        else:
            assert batch.status_code == 500
        one = await service.post(f"/models/{name}/predict", rows[0])
        alone = as_json(service.pyfunc(name, rows[:1]))
        if service.live(name).contract.is_whole:
            assert one.json()["predictions"] == alone
        elif len(per_row(alone)) == 1:
            assert one.json()["prediction"] == per_row(alone)[0]
        else:
            assert one.status_code == 500


@in_service
async def test_documentation_shows_unsplit_outputs(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()

    def answer(path: str) -> dict[str, Any]:
        schema = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        component: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return component["properties"]

    assert answer("/models/twice/predict").keys() == {"prediction", "model"}
    for path in ("predict", "predict/batch"):
        assert answer(f"/models/forecast/{path}").keys() == {"predictions", "model"}


# -- concurrent requests


def requests_of(name: str, rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return the same rows in each protocol that accepts several rows."""
    infer = {
        "inputs": [
            {"name": "x", "datatype": "FP64", "shape": [len(rows)], "data": [row["x"] for row in rows]}
        ]
    }
    return [
        (f"/invocations?model={name}", {"dataframe_records": rows}),
        (f"/models/{name}/predict/batch", {"rows": rows}),
        (f"/v2/models/{name}/infer", infer),
    ]


def without_id(answer: httpx.Response) -> Any:
    return {key: value for key, value in answer.json().items() if key not in ("id", "request_id")}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "weigh"])
@in_service
async def test_concurrent_prediction_equals_single_one(service: Service, name: str) -> None:
    requests = [
        *requests_of(name, [{"x": 1.0}, {"x": 3.0}]),
        *requests_of(name, [{"x": 10.0}]),
        *((f"/models/{name}/predict", {"x": x}) for x in (1.0, -1.0, 2.0, 5.0)),
    ]
    together = await service.together(name, *requests)
    for (path, body), answer in zip(requests, together, strict=True):
        alone = await service.post(path, body)
        assert (answer.status_code, without_id(answer)) == (alone.status_code, without_id(alone)), (
            path,
            body,
        )


@in_service
async def test_inseparable_shared_call_ends_sharing(
    service: Service,
) -> None:
    answers = await service.together("drop", *(("/models/drop/predict", {"x": x}) for x in (1.0, -1.0, 2.0)))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    sharing = service.live("drop").calls.sharing
    assert (sharing.allowed, sharing.basis) == (False, "monitoring")


@in_service
async def test_difference_in_live_requests_ends_sharing(service: Service) -> None:
    live = service.live("late")
    assert live.calls.sharing.allowed
    while live.calls.sharing.allowed:
        live.calls.monitor.check_next()
        await service.together("late", *(("/models/late/predict", {"x": x}) for x in (1.0, 77.0, 2.0)))
        await live.calls.monitor.settled()
    assert live.calls.sharing.basis == "monitoring"
    assert "a live request has another prediction alone" in live.calls.sharing.reason
    answers = await service.together("late", *(("/models/late/predict", {"x": x}) for x in (1.0, 77.0)))
    assert [answer.json()["prediction"] for answer in answers] == [2.0, 231.0]


@in_service
async def test_metadata_decision_on_sharing_stands(service: Service) -> None:
    answers = await service.together("trusted", *(("/models/trusted/predict", {"x": x}) for x in (1.0, 3.0)))
    assert [answer.json()["prediction"] for answer in answers] == [0.25, 0.75]
    assert service.live("trusted").calls.sharing.allowed


VALUE = {"x": st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, 10.0])}
EXTRAS = {
    "unit": st.sampled_from([None, "g", "kg"]),
    "w": st.sampled_from([None, 0.5]),
    "b": st.sampled_from([None, True, False]),
}


@st.composite
def several_requests(draw: st.DrawFn) -> tuple[str, list[tuple[str, Any]]]:
    """Provide a model, and requests to it in several protocols."""
    name = draw(st.sampled_from(NAMES))
    row = st.fixed_dictionaries(VALUE, optional=EXTRAS if name == "weigh" else {})
    requests = []
    for rows in draw(st.lists(st.lists(row, min_size=1, max_size=3), min_size=2, max_size=5)):
        typed = draw(st.booleans())
        path = f"/models/{name}/predict/batch" if typed else f"/invocations?model={name}"
        requests.append((path, {"rows" if typed else "dataframe_records": rows}))
    return name, requests


@settings(max_examples=40)
@given(drawn=several_requests())
@in_service
async def test_concurrent_requests_have_isolated_predictions(
    service: Service, drawn: tuple[str, list[tuple[str, Any]]]
) -> None:
    name, requests = drawn
    answers = await service.together(name, *requests)
    for (path, body), answer in zip(requests, answers, strict=True):
        alone = await service.post(path, body)
        assert (answer.status_code, without_id(answer)) == (alone.status_code, without_id(alone)), (
            path,
            body,
        )


# -- warnings


def warnings_of(service: Service, name: str) -> list[str]:
    return service.live(name).warnings


async def until_tagged(registry: Registry, name: str, tag: str, text: str) -> None:
    """Wait until a tag of the version contains a text."""
    while text not in registry.client.get_model_version(name, "1").tags.get(tag, ""):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@in_service
async def test_version_without_example_is_reported_as_unverified(service: Service) -> None:
    (warning,) = warnings_of(service, "bare")
    assert warning.startswith("bare version 1 went live unverified, because it has no input example in rows")
    ready = (await service.client.get("/ready")).json()
    (state,) = [model for model in ready["models"] if model["name"] == "bare"]
    assert state["warnings"] == [warning]
    metrics = (await service.client.get("/metrics")).text
    labels = 'model="{0}",uri="models:/{0}/1"'
    assert f'serving_model_unverified{{{labels.format("bare")},version="1"}} 1.0' in metrics
    assert f'serving_model_unverified{{{labels.format("twice")},version="1"}} 0.0' in metrics
    assert f"serving_model_warnings{{{labels.format('bare')}}} 1.0" in metrics
    await until_tagged(
        Registry(service.settings.tracking_uri), "bare", "serving.warnings", "went live unverified"
    )
    await until_tagged(Registry(service.settings.tracking_uri), "twice", "serving.batching", '"shared": true')


@in_service
async def test_warning_lasts_while_every_request_fails(
    service: Service,
) -> None:
    assert (await service.post("/models/moody/predict", {"x": -1.0})).status_code == 500
    (warning,) = warnings_of(service, "moody")
    assert warning.startswith("every request to moody version 1 since it went live has failed")
    await until_tagged(Registry(service.settings.tracking_uri), "moody", "serving.warnings", "every request")
    assert (await service.post("/models/moody/predict", {"x": 1.0})).status_code == 200
    assert warnings_of(service, "moody") == []
    await until_tagged(Registry(service.settings.tracking_uri), "moody", "serving.warnings", "none")


# -- decisions of other fronts


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ('{"shared": false, "basis": "monitoring", "reason": "they differ"}', "they differ"),
        ('{"shared": true, "basis": "proof", "reason": "they are the same"}', None),
        ("{", None),
        ("[1]", None),
        ("[" * 100_000, None),
        ('{"basis": ["monitoring"]}', None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_difference_reported_by_another_front_ends_sharing(tag: str, expected: str | None) -> None:
    decision = reported({"serving.batching": tag})
    assert (decision and decision.reason) == expected
    assert not (decision and decision.allowed)
