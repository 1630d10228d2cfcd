"""Answers bit by bit, of a service in a process of its own."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from casting import Registry, actor
from conftest import NewRegistry
from live import Service, served, until
from pids import Watch, descendants
from promotions import Model

from serving.batching.chunk_stream import ChunkStream

Event = tuple[str, Any]
SPEAKERS = [f"speaker-{number}" for number in range(1, 13)]


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(new_registry(tmp_path_factory.mktemp("speaker")))


@pytest.fixture(scope="module")
def service(registry: Registry) -> Iterator[Service]:
    """Speakers, and an actor that can't stream, each with one process."""
    registry.promote("actor", registry.add("actor", factor=1.0))
    speaker = actor(registry.folder, streams=True, factor=1.0)
    for name in SPEAKERS:
        registry.promote(name, registry.register(name, speaker))
    with served(
        registry.uri,
        registry.folder,
        models=",".join(f"models:/{name}/Production" for name in ("actor", *SPEAKERS)),
        deadline_seconds=3,
        stream_seconds=4,
    ) as service:
        service.until_ready()
        yield service


@pytest.fixture(scope="module")
def speakers(service: Service, registry: Registry) -> Iterator[Model]:
    return (Model(name, service, registry) for name in SPEAKERS)


def well(speaker: Model) -> Iterator[Model]:
    """A speaker that is well after the test too."""
    yield speaker
    found = speaker.predict(3.0).json()
    assert found["prediction"] == 3.0 * float(found["model"]["version"])


@pytest.fixture
def speaker(speakers: Iterator[Model]) -> Iterator[Model]:
    """A speaker whose process nobody else has tried."""
    yield from well(next(speakers))


@pytest.fixture(scope="module")
def patient(speakers: Iterator[Model]) -> Model:
    return next(speakers)


@pytest.fixture
def steady(patient: Model) -> Iterator[Model]:
    """A speaker for all tests that end neither its process nor its time as the live version."""
    yield from well(patient)
    patient.settle()


@contextmanager
def stream(speaker: Model, act: str, **more: Any) -> Iterator[httpx.Response]:
    path, row = f"/models/{speaker.name}/predict/stream", {"x": 2.0, "act": act}
    with speaker.service.client.stream("POST", path, json=row, **more) as response:
        yield response


def events(response: httpx.Response) -> Iterator[Event]:
    """The name and the data of each event, as it comes."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
            name = ""


def told(speaker: Model, act: str) -> list[Event]:
    with stream(speaker, act) as response:
        assert response.status_code == 200, response.read()
        return [*events(response)]


def test_each_bit_comes_as_soon_as_it_is_there(steady: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with stream(steady, f"say:hello wait:{tmp_path / 'pipe'} say:you") as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-model-version"] == "1"
        assert response.headers["cache-control"] == "no-store"
        assert "first;dur=" in response.headers["server-timing"]
        heard = events(response)
        assert next(heard) == ("", "hello")
        (tmp_path / "pipe").write_text("go on")
        assert [*heard] == [
            ("", {"x": 2.0, "act": "wait"}),
            ("", "you"),
            ("end", {"model": {"name": steady.name, "version": "1"}}),
        ]


def test_a_model_is_asked_by_path_version_and_header(steady: Model) -> None:
    for path, headers in (
        (f"/models/{steady.name}/versions/1/predict/stream", {}),
        ("/predict/stream", {"X-Model": steady.name}),
    ):
        row = {"x": 2.0, "act": "say:a"}
        with steady.service.client.stream("POST", path, json=row, headers=headers) as response:
            assert next(events(response)) == ("", "a")


def test_nothing_to_tell_is_an_answer(steady: Model) -> None:
    assert [name for name, _ in told(steady, "")] == ["end"]


@pytest.mark.parametrize(
    ("act", "status", "detail"),
    [
        ("raise:secret", 500, "The model failed on this request."),
        ("nan", 500, "The model failed on this request."),
        ("hang", 504, "The model did not send the next chunk within the deadline."),
        ("exit:3", 503, "died"),
    ],
)
def test_what_fails_before_the_first_bit_is_a_problem(
    speaker: Model, act: str, status: int, detail: str
) -> None:
    with stream(speaker, act) as response:
        problem = json.loads(response.read())
    assert (response.status_code, problem["status"]) == (status, status)
    assert detail in problem["detail"]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"]


@pytest.mark.parametrize(
    ("act", "status"), [("raise:secret", 500), ("nan", 500), ("hang", 504), ("exit:3", 503), ("for:on", 504)]
)
def test_what_fails_under_way_is_the_last_event(speaker: Model, act: str, status: int) -> None:
    first, *_, (name, problem) = told(speaker, f"say:hello {act}")
    assert first == ("", "hello")
    assert (name, problem["status"]) == ("error", status)
    assert "secret" not in json.dumps(problem)


def test_a_process_that_dies_before_the_first_bit_is_not_seen(speaker: Model, tmp_path: Path) -> None:
    assert told(speaker, f"fatal:{tmp_path / 'once'} say:again")[0] == ("", {"x": 2.0, "act": "fatal"})


def test_a_caller_who_leaves_stops_the_model(steady: Model, tmp_path: Path) -> None:
    with Watch(descendants(steady.service.process.pid)) as processes:
        with stream(steady, f"for:on end:{tmp_path / 'end'}") as response:
            assert next(events(response)) == ("", {"on": "on" * 1000})
        until((tmp_path / "end").exists)
        assert told(steady, "say:next")[0] == ("", "next")
        assert processes.left(0) == descendants(steady.service.process.pid)


def test_a_caller_who_leaves_the_queue_is_forgotten(steady: Model, tmp_path: Path) -> None:
    with stream(steady, "for:on") as response:
        heard = events(response)
        assert next(heard) == ("", {"on": "on" * 1000})
        waiting = threading.Thread(target=give_up, args=(steady, f"note:{tmp_path / 'called'}"))
        waiting.start()
        waiting.join()
    assert told(steady, "say:next")[0] == ("", "next")
    assert not (tmp_path / "called").exists()


def give_up(speaker: Model, act: str) -> None:
    with pytest.raises(httpx.ReadTimeout), stream(speaker, act, timeout=0.3):
        pass


def test_a_promotion_does_not_touch_an_answer_under_way(speaker: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with stream(speaker, f"say:hello wait:{tmp_path / 'pipe'}") as response:
        heard = events(response)
        assert next(heard) == ("", "hello")
        second = speaker.promote(streams=True)
        speaker.until_live(second)
        (tmp_path / "pipe").write_text("go on")
        assert [*heard] == [
            ("", {"x": 2.0, "act": "wait"}),
            ("end", {"model": {"name": speaker.name, "version": "1"}}),
        ]
    assert told(speaker, "")[-1] == ("end", {"model": {"name": speaker.name, "version": second}})


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise:unfit", "it raised ValueError: unfit"),
        ("nan", "it returned a value that JSON cannot represent"),
    ],
)
def test_a_version_whose_first_bit_fails_does_not_go_live(steady: Model, act: str, reason: str) -> None:
    bad = steady.promote(streams=True, example=pd.DataFrame({"x": [1.0], "act": [act]}))
    assert f"on its own input example {reason}" in steady.until_refused(bad)


def test_a_version_that_streams_no_more_would_break_clients(steady: Model) -> None:
    bad = steady.promote(streams=False)
    assert "it no longer streams its output" in steady.until_refused(bad)


def test_a_model_that_cannot_stream_says_so(service: Service) -> None:
    found = service.client.post("/predict/stream", json={"x": 1.0})
    assert found.status_code == 404
    assert "it has no predict_stream" in found.json()["detail"]
    paths = service.client.get("/openapi.json").json()["paths"]
    assert "/models/actor/predict/stream" not in paths
    answers = paths["/models/speaker-1/predict/stream"]["post"]["responses"]["200"]["content"]
    assert [*answers] == ["text/event-stream"]


def test_what_does_not_fit_is_refused(service: Service) -> None:
    found = service.client.post("/models/speaker-1/predict/stream", json={"x": "two"})
    assert (found.status_code, found.json()["errors"][0]["loc"]) == (422, ["x"])
    assert service.client.get("/predict/stream").status_code == 405


# -- without a process


class Talker:
    """Hears what a stream has to say to its process."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.told.append(name)


@pytest.mark.anyio
async def test_a_slow_caller_holds_the_model_up() -> None:
    process, stream = Talker(), ChunkStream(60)
    chunks = [b"%d" % number * 1000 for number in range(100, 124)]
    hung, stalled = lambda: pytest.fail("it is not the model that is slow"), lambda: None
    stream.attach(process, hung, stalled)  # type: ignore[arg-type]
    for chunk in chunks:
        stream.feed(chunk)
    assert process.told == ["pause"]
    heard = stream.chunks()
    for chunk in chunks[:15]:
        assert await anext(heard) == chunk
    assert process.told == ["pause", "resume"]
    stream.end()
    assert process.told == ["pause", "resume", "stop"]
    stream.detach()
    assert [each async for each in heard] == chunks[15:]


@pytest.mark.anyio
async def test_chunks_are_read_ahead_where_there_is_room() -> None:
    process, room = Talker(), [0]
    stream = ChunkStream(60, lambda size: room.append(size))
    stream.attach(process, lambda: None, lambda: None)  # type: ignore[arg-type]
    for _ in range(10):
        stream.feed(b"x" * 2**16)
    assert (process.told, sum(room)) == ([], 2**20)
    for _ in range(10):
        stream.feed(b"x" * 2**16)
    assert process.told == ["pause"]
    stream.end()
    stream.detach()
