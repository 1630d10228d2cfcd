"""Streamed predictions of a service in a process of its own."""

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

from serving.batching.chunk_stream import ChunkStream
from tests.support.process_ids import Watch, descendants
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, served, until

Event = tuple[str, Any]
SPEAKERS = [f"speaker-{number}" for number in range(1, 13)]


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(new_registry(tmp_path_factory.mktemp("speaker")))


@pytest.fixture(scope="module")
def service(registry: Registry) -> Iterator[Service]:
    """Serve speakers and an actor that cannot stream, all with one process."""
    registry.promote("actor", registry.add("actor", factor=1.0))
    speaker = save_scripted_model(registry.folder, streams=True, factor=1.0)
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
    """Yield a speaker, and verify after the test that it still predicts."""
    yield speaker
    body = speaker.predict(3.0).json()
    assert body["prediction"] == 3.0 * float(body["model"]["version"])


@pytest.fixture
def speaker(speakers: Iterator[Model]) -> Iterator[Model]:
    """Yield a speaker that no other test uses."""
    yield from well(next(speakers))


@pytest.fixture(scope="module")
def patient(speakers: Iterator[Model]) -> Model:
    return next(speakers)


@pytest.fixture
def steady(patient: Model) -> Iterator[Model]:
    """Yield a speaker shared by the tests that keep its process and its live version."""
    yield from well(patient)
    patient.settle()


@contextmanager
def stream(speaker: Model, act: str, **more: Any) -> Iterator[httpx.Response]:
    path, row = f"/models/{speaker.name}/predict/stream", {"x": 2.0, "act": act}
    with speaker.service.client.stream("POST", path, json=row, **more) as response:
        yield response


def events(response: httpx.Response) -> Iterator[Event]:
    """Yield name and data of the events as they arrive."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
            name = ""


def all_events(speaker: Model, act: str) -> list[Event]:
    with stream(speaker, act) as response:
        assert response.status_code == 200, response.read()
        return [*events(response)]


def test_chunks_are_sent_immediately(steady: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with stream(steady, f"say:hello wait:{tmp_path / 'pipe'} say:you") as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-model-version"] == "1"
        assert response.headers["cache-control"] == "no-store"
        assert "first;dur=" in response.headers["server-timing"]
        received = events(response)
        assert next(received) == ("", "hello")
        (tmp_path / "pipe").write_text("go on")
        assert [*received] == [
            ("", {"x": 2.0, "act": "wait"}),
            ("", "you"),
            ("end", {"model": {"name": steady.name, "version": "1"}}),
        ]


def test_model_is_selected_by_path_version_or_header(steady: Model) -> None:
    for path, headers in (
        (f"/models/{steady.name}/versions/1/predict/stream", {}),
        ("/predict/stream", {"X-Model": steady.name}),
    ):
        row = {"x": 2.0, "act": "say:a"}
        with steady.service.client.stream("POST", path, json=row, headers=headers) as response:
            assert next(events(response)) == ("", "a")


def test_empty_stream_is_valid(steady: Model) -> None:
    assert [name for name, _ in all_events(steady, "")] == ["end"]


@pytest.mark.parametrize(
    ("act", "status", "detail"),
    [
        ("raise:secret", 500, "The model failed on this request."),
        ("nan", 500, "The model failed on this request."),
        ("hang", 504, "The model did not send the next chunk within the deadline."),
        ("exit:3", 503, "died"),
    ],
)
def test_failure_before_first_chunk_is_a_problem(speaker: Model, act: str, status: int, detail: str) -> None:
    with stream(speaker, act) as response:
        problem = json.loads(response.read())
    assert (response.status_code, problem["status"]) == (status, status)
    assert detail in problem["detail"]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"]


@pytest.mark.parametrize(
    ("act", "status"), [("raise:secret", 500), ("nan", 500), ("hang", 504), ("exit:3", 503), ("for:on", 504)]
)
def test_later_failure_is_the_last_event(speaker: Model, act: str, status: int) -> None:
    first, *_, (name, problem) = all_events(speaker, f"say:hello {act}")
    assert first == ("", "hello")
    assert (name, problem["status"]) == ("error", status)
    assert "secret" not in json.dumps(problem)


def test_process_death_before_first_chunk_is_retried(speaker: Model, tmp_path: Path) -> None:
    assert all_events(speaker, f"fatal:{tmp_path / 'once'} say:again")[0] == ("", {"x": 2.0, "act": "fatal"})


def test_disconnect_stops_the_model(steady: Model, tmp_path: Path) -> None:
    with Watch(descendants(steady.service.process.pid)) as processes:
        with stream(steady, f"for:on end:{tmp_path / 'end'}") as response:
            assert next(events(response)) == ("", {"on": "on" * 1000})
        until((tmp_path / "end").exists)
        assert all_events(steady, "say:next")[0] == ("", "next")
        assert processes.left(0) == descendants(steady.service.process.pid)


def test_caller_who_leaves_the_queue_is_dropped(steady: Model, tmp_path: Path) -> None:
    with stream(steady, "for:on") as response:
        received = events(response)
        assert next(received) == ("", {"on": "on" * 1000})
        waiting = threading.Thread(target=give_up, args=(steady, f"note:{tmp_path / 'called'}"))
        waiting.start()
        waiting.join()
    assert all_events(steady, "say:next")[0] == ("", "next")
    assert not (tmp_path / "called").exists()


def give_up(speaker: Model, act: str) -> None:
    with pytest.raises(httpx.ReadTimeout), stream(speaker, act, timeout=0.3):
        pass


def test_promotion_does_not_affect_a_running_stream(speaker: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with stream(speaker, f"say:hello wait:{tmp_path / 'pipe'}") as response:
        received = events(response)
        assert next(received) == ("", "hello")
        second = speaker.promote(streams=True)
        speaker.until_live(second)
        (tmp_path / "pipe").write_text("go on")
        assert [*received] == [
            ("", {"x": 2.0, "act": "wait"}),
            ("end", {"model": {"name": speaker.name, "version": "1"}}),
        ]
    assert all_events(speaker, "")[-1] == ("end", {"model": {"name": speaker.name, "version": second}})


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise:unfit", "it raised ValueError: unfit"),
        ("nan", "it returned a value that JSON cannot represent"),
    ],
)
def test_version_whose_first_chunk_fails_is_rejected(steady: Model, act: str, reason: str) -> None:
    bad = steady.promote(streams=True, example=pd.DataFrame({"x": [1.0], "act": [act]}))
    assert f"on its own input example {reason}" in steady.until_refused(bad)


def test_version_that_no_longer_streams_is_rejected(steady: Model) -> None:
    bad = steady.promote(streams=False)
    assert "it no longer streams its output" in steady.until_refused(bad)


def test_model_without_streaming_has_no_stream_route(service: Service) -> None:
    response = service.client.post("/predict/stream", json={"x": 1.0})
    assert response.status_code == 404
    assert "it has no predict_stream" in response.json()["detail"]
    paths = service.client.get("/openapi.json").json()["paths"]
    assert "/models/actor/predict/stream" not in paths
    types = paths["/models/speaker-1/predict/stream"]["post"]["responses"]["200"]["content"]
    assert [*types] == ["text/event-stream"]


def test_invalid_stream_request_is_rejected(service: Service) -> None:
    response = service.client.post("/models/speaker-1/predict/stream", json={"x": "two"})
    assert (response.status_code, response.json()["errors"][0]["loc"]) == (422, ["x"])
    assert service.client.get("/predict/stream").status_code == 405


# -- without a process


class Talker:
    """Records the calls of a stream to its process."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


@pytest.mark.anyio
async def test_slow_caller_pauses_the_model() -> None:
    process, stream = Talker(), ChunkStream(60)
    chunks = [b"%d" % number * 1000 for number in range(100, 124)]
    hung, stalled = lambda: pytest.fail("it is not the model that is slow"), lambda: None
    stream.attach(process, hung, stalled)  # type: ignore[arg-type]
    for chunk in chunks:
        stream.feed(chunk)
    assert process.calls == ["pause"]
    received = stream.chunks()
    for chunk in chunks[:15]:
        assert await anext(received) == chunk
    assert process.calls == ["pause", "resume"]
    stream.end()
    assert process.calls == ["pause", "resume", "stop"]
    stream.detach()
    assert [item async for item in received] == chunks[15:]


@pytest.mark.anyio
async def test_chunks_are_buffered_up_to_the_limit() -> None:
    process, room = Talker(), [0]
    stream = ChunkStream(60, lambda size: room.append(size))
    stream.attach(process, lambda: None, lambda: None)  # type: ignore[arg-type]
    for _ in range(10):
        stream.feed(b"x" * 2**16)
    assert (process.calls, sum(room)) == ([], 2**20)
    for _ in range(10):
        stream.feed(b"x" * 2**16)
    assert process.calls == ["pause"]
    stream.end()
    stream.detach()
