"""`serving.client` against a service in a process of its own."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema

from serving import client as api
from serving.auth import api_keys
from serving.client import AsyncClient, Client, Feedback
from serving.client.encoding import to_jsonable
from serving.client.events import ChunkParser
from tests.support.contracts import columns
from tests.support.faulty_proxy import free_port
from tests.support.journal_reader import JournalReader
from tests.support.registry import NewRegistry, Registry, quiet, save_scripted_model
from tests.support.sample_models import HOUSES, IRIS, sample_models
from tests.support.service import FOR_SKLEARN, SELDOM, Service, served, until

ECHO = Path(__file__).parents[1] / "support" / "echo_model.py"
FLOWER: dict[str, Any] = {str(name): value for name, value in IRIS.iloc[0].items()}
FIELDS = "n: long, x: double?, at: datetime, data: binary, text: string"
VALUES = {
    "n": 2**53 + 1,
    "x": 0.1,
    "at": datetime(2026, 2, 28, 12, 30, 1, 250_001),
    "data": b"\x00\xff",
    "text": "a\u2028\U0001f33c",
}
"""A row whose values a careless encoder changes."""
QUEUE_SIZE = 4


def echo(folder: Path) -> Path:
    """Save the model that returns its input."""
    example = pd.DataFrame([VALUES])
    with quiet():
        mlflow.pyfunc.save_model(
            folder,
            python_model=ECHO,
            signature=ModelSignature(
                Schema(columns(FIELDS)),
                Schema(columns(FIELDS)),
                ParamSchema([ParamSpec("plus", "long", 0)]),
            ),
            input_example=example,
            pip_requirements=[],
        )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save the models of the service."""
    home = tmp_path_factory.mktemp("models")
    with quiet():
        for name in ("classifier", "pipeline", "whole"):
            sample_models()[name].save(home / name)
    saved = {name: home / name for name in ("classifier", "pipeline", "whole")}
    return saved | {
        "echo": echo(home / "echo"),
        "actor": save_scripted_model(home),
        "speaker": save_scripted_model(home, streams=True),
    }


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[str, api_keys.ApiKey]]:
    scope = api_keys.Scope.ADMIN
    return {
        "test": api_keys.create_key("test", scope),
        "slow": api_keys.create_key("slow", rate=1.0),
    }


@pytest.fixture(scope="module")
def service(
    folders: dict[str, Path],
    keys: dict[str, tuple[str, api_keys.ApiKey]],
    new_registry: NewRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("client")
    registry = Registry(new_registry(home))
    for name, folder in folders.items():
        registry.alias(name, "champion", registry.register(name, folder))
    api_keys.write(home / "keys.json", [record for _, record in keys.values()])
    with served(
        registry.uri,
        home,
        models=",".join(f"models:/{name}@champion" for name in folders),
        keys_file=home / "keys.json",
        journal_url=f"sqlite:///{home / 'journal.db'}",
        max_queue_size=QUEUE_SIZE,
        poll_seconds=SELDOM,
        preload=FOR_SKLEARN,
        _key=keys["test"][0],
    ) as service:
        service.until_ready()
        yield service


@pytest.fixture(scope="module")
def key(keys: dict[str, tuple[str, api_keys.ApiKey]]) -> str:
    return keys["test"][0]


@pytest.fixture(scope="module")
def client(service: Service, key: str) -> Iterator[Client]:
    with Client(service.url, api_key=key) as made:
        yield made


@pytest.fixture
async def async_client(service: Service, key: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url, api_key=key) as made:
        yield made


# -- rows


def test_predicts_one_row_with_the_default_model(client: Client) -> None:
    result = client.predict(FLOWER)

    assert np.argmax(result.prediction) == 0
    assert result.model == api.ModelVersion("classifier", "1")
    assert result.request_id
    assert result.prediction_id


@pytest.mark.parametrize("options", [{"model": "echo"}, {"model": "echo@champion"}, {"model": "echo/1"}])
def test_addresses_a_model_by_name_and_reference(client: Client, options: Any) -> None:
    assert client.predict(VALUES, **options).model == api.ModelVersion("echo", "1")


def test_addresses_a_version(client: Client, service: Service, key: str) -> None:
    assert client.predict(VALUES, model="echo", version=1).model.version == "1"
    with Client(service.url, api_key=key, model="echo") as bound:
        assert bound.predict(VALUES, version="1").model.version == "1"
    with pytest.raises(api.NotFound) as missing:
        client.predict(VALUES, model="echo", version=9)
    assert missing.value.status == 404


def test_values_reach_the_model_unchanged(client: Client) -> None:
    returned = client.predict(VALUES, model="echo").prediction

    assert returned == {
        "n": 2**53 + 1,
        "x": 0.1,
        "at": "2026-02-28T12:30:01.250001",
        "data": "AP8=",
        "text": VALUES["text"],
    }


@pytest.mark.parametrize(
    ("column", "value", "equivalent"),
    [
        ("n", np.int64(2**62 + 1), 2**62 + 1),
        ("x", np.float32(0.1), float(np.float32(0.1))),
        ("x", None, None),
        ("x", pd.NA, None),
        ("at", pd.Timestamp("2026-02-28T12:30:01.250001"), VALUES["at"]),
        ("at", np.datetime64("2026-02-28T12:30:01.250001"), VALUES["at"]),
        ("at", datetime(2026, 2, 28, 13, 30, 1, 250_001, timezone(timedelta(hours=1))), VALUES["at"]),
        ("data", bytearray(b"\x00\xff"), b"\x00\xff"),
        ("text", np.str_("ü"), "ü"),
    ],
)
def test_values_of_libraries_are_sent_as_plain_values(
    client: Client, column: str, value: Any, equivalent: Any
) -> None:
    sent = client.predict(VALUES | {column: value}, model="echo").prediction
    assert sent == client.predict(VALUES | {column: equivalent}, model="echo").prediction


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (np.float64("inf"), ValueError),
        (np.array([1.0, np.nan]), ValueError),
        (pd.Timestamp("2026-02-28T12:30:01.250001001"), ValueError),
        (np.datetime64("2026-02-28T12:30:01.250001001"), ValueError),
        (1j, TypeError),
        ({1, 2}, TypeError),
        (np.longdouble(0.1), TypeError),
        (np.array([5], "timedelta64[ns]"), TypeError),
        (np.array([(1, 2.0)], [("a", int), ("b", float)]), TypeError),
        ({1: "a", "1": "b"}, ValueError),
    ],
)
def test_inexact_values_are_not_sent(client: Client, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        client.predict(VALUES | {"x": value}, model="echo")


def test_arrays_of_times_are_texts_and_missing_ones_null() -> None:
    times = np.array(["2026-02-28", "NaT"], "datetime64[ns]")
    written = ["2026-02-28T00:00:00.000000", None]
    assert to_jsonable([pd.NaT, times, times[0], np.array(5), np.array([[True]])]) == [
        None,
        written,
        written[0],
        5,
        [[True]],
    ]


def test_predicts_several_rows(client: Client) -> None:
    result = client.predict_batch([VALUES, VALUES | {"n": 5}], model="echo")

    assert [row.prediction["n"] for row in result.predictions] == [2**53 + 1, 5]
    assert result.model.name == "echo"


def test_params_apply_to_rows_batches_and_tables(client: Client) -> None:
    options: Any = {"model": "echo", "params": {"plus": 2}}
    frame = pd.DataFrame([VALUES])

    assert client.predict(VALUES, **options).prediction["n"] == 2**53 + 3
    assert client.predict_batch([VALUES], **options).predictions[0].prediction["n"] == 2**53 + 3
    assert client.predict_batch(frame, **options).predictions[0].prediction["n"] == 2**53 + 3


def test_whole_outputs_stay_whole(client: Client) -> None:
    assert client.predict({"x": 2.0}, model="whole").prediction == {"total": 2.0, "rows": 1}
    batch = client.predict_batch([{"x": 2.0}, {"x": 3.0}], model="whole")
    assert batch.output == {"total": 5.0, "rows": 2}
    with pytest.raises(TypeError, match="one result per row"):
        _ = batch.predictions


# -- tables


def test_large_frame_equals_the_model_itself(client: Client, folders: dict[str, Path]) -> None:
    frame = IRIS.sample(10_000, replace=True, random_state=1, ignore_index=True)
    frame += np.random.default_rng(1).normal(0, 0.1, frame.shape)

    result = client.predict_batch(frame, model="classifier")

    expected = mlflow.pyfunc.load_model(str(folders["classifier"])).predict(frame)
    assert np.array_equal([row.prediction for row in result.predictions], np.asarray(expected))


@pytest.mark.parametrize("convert", [pd.DataFrame, pa.Table.from_pandas, pa.RecordBatch.from_pandas])
def test_tables_of_all_types_equal_rows(client: Client, convert: Any) -> None:
    frame = HOUSES[HOUSES.columns[::-1]].astype({"city": "category"})
    rows = client.predict_batch(HOUSES.to_dict("records"), model="pipeline")

    table = client.predict_batch(convert(frame), model="pipeline")

    assert table.output == rows.output


def test_table_carries_nanoseconds_and_large_integers(client: Client, folders: dict[str, Path]) -> None:
    times = np.array(["2026-02-28T12:30:01.250001001", "1999-01-01"], "datetime64[ns]")
    frame = pd.DataFrame([VALUES, VALUES]).assign(at=times, n=[2**63 - 1, -(2**63)], x=[np.nan, 1e-320])

    (first, second) = client.predict_batch(frame, model="echo").predictions

    expected = mlflow.pyfunc.load_model(str(folders["echo"])).predict(frame)
    assert [first.prediction["n"], second.prediction["n"]] == expected["n"].tolist()
    assert pd.Timestamp(first.prediction["at"]) == expected["at"][0]
    assert first.prediction["x"] is None
    assert second.prediction["x"] == 1e-320


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["n", "n"]), "same name"),
        (pd.DataFrame({1: [1], "1": [2]}), "same name"),
        (pd.DataFrame({"n": [1, "a"]}), "n"),
        (pd.DataFrame({"o": [{"a": 1}, {"b": 2}]}), "differ in their fields"),
        (pd.Series([1.0]), "table"),
    ],
)
def test_tables_that_arrow_would_change_are_not_sent(client: Client, frame: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        client.predict_batch(frame, model="echo")


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"n": [1.5]}, "n"),
        ({"x": [np.inf]}, "x"),
        ({"unknown": [1]}, "unknown"),
        ({"text": [1]}, "text"),
    ],
)
def test_table_that_does_not_match_is_rejected(client: Client, change: Any, column: str) -> None:
    with pytest.raises(api.InvalidRequest) as rejected:
        client.predict_batch(pd.DataFrame([VALUES]).assign(**change), model="echo")
    assert {error.loc[0] for error in rejected.value.errors} == {column}
    with pytest.raises(api.InvalidRequest) as missing:
        client.predict_batch(pd.DataFrame([VALUES]).drop(columns="n"), model="echo")
    assert [error.loc for error in missing.value.errors] == [("n",)]


# -- errors


def test_rejected_rows_name_each_field(client: Client) -> None:
    with pytest.raises(api.InvalidRequest) as rejected:
        client.predict_batch([FLOWER, FLOWER | {"sepal_width": "3.5", "colour": 1}])

    error = rejected.value
    assert error.status == 422
    assert {fault.loc for fault in error.errors} == {("rows", 1, "sepal_width"), ("rows", 1, "colour")}
    assert error.request_id in str(error)
    assert "rows.1.sepal_width" in str(error)


def test_error_survives_pickling(client: Client) -> None:
    with pytest.raises(api.InvalidRequest) as rejected:
        client.predict({})

    for copied in (pickle.loads(pickle.dumps(rejected.value)), copy.copy(rejected.value)):
        assert str(copied) == str(rejected.value)
        assert copied.errors == rejected.value.errors


def test_failure_of_the_model_is_an_error_of_its_own(client: Client, service: Service) -> None:
    with pytest.raises(api.ModelFailed) as failed:
        client.predict({"x": 1.0, "act": "raise:secret"}, model="actor")
    assert "secret" not in str(failed.value)
    until(lambda: [line for line in service.lines() if line.get("request_id") == failed.value.request_id])


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.predict(FLOWER, modle="echo"),
        lambda client: client.predict(FLOWER, model=""),
        lambda client: client.predict(FLOWER, version="1"),
        lambda client: client.predict(FLOWER, deadline=0),
        lambda client: client.predict(FLOWER, deadline=float("nan")),
        lambda client: client.predict(FLOWER, model="ирис/Production"),
    ],
)
def test_ambiguous_options_are_rejected(client: Client, call: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        call(client)


def test_wrong_key_is_denied(service: Service) -> None:
    with Client(service.url, api_key="sk_none") as stranger, pytest.raises(api.AccessDenied) as denied:
        stranger.models()
    assert denied.value.status == 401


def test_key_is_read_from_the_environment(
    service: Service, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SERVING_API_KEY", key)
    with Client(service.url) as client:
        assert client.predict(FLOWER).model.name == "classifier"


def test_other_server_is_recognized() -> None:
    with OtherServer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as other, Client(other.url) as client:
        with pytest.raises(api.UnexpectedResponse, match="predict"):
            client.predict(FLOWER)
        with pytest.raises(api.UnexpectedResponse, match="stream"), client.predict_stream(FLOWER):
            pass
    page = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"
    with (
        OtherServer(page) as other,
        Client(other.url) as client,
        pytest.raises(api.ResponseError) as failed,
    ):
        client.predict(FLOWER)
    assert failed.value.detail == "Bad Gateway"


def test_url_without_scheme_is_rejected() -> None:
    with pytest.raises(ValueError, match="http://"):
        Client("localhost:8000")


# -- deadlines and retries


def test_deadline_ends_the_call_here_and_in_the_service(client: Client, service: Service) -> None:
    with pytest.raises(api.DeadlineExceeded) as late:
        client.predict({"x": 1.0, "act": "toil:1"}, model="actor", deadline=0.2)

    assert late.value.status == 504
    assert late.value.request_id
    ended = until(
        lambda: [line for line in service.lines() if line.get("request_id") == late.value.request_id]
    )
    assert ended[0]["status"] in (499, 504)


def rejections(service: Service) -> float:
    """Return the number of requests to the actor that were rejected with 503."""
    counts = service.metrics().items()
    return sum(value for name, value in counts if 'code="503"' in name and 'model="actor"' in name)


@asynccontextmanager
async def full_queue(service: Service, key: str, pipe: Path) -> AsyncIterator[Callable[[], None]]:
    """Block the process of the actor and fill its queue; yield a function that unblocks it."""
    os.mkfifo(pipe)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60) as plain:

        def send(**row: Any) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(plain.post("/models/actor/predict", json={"x": 1.0} | row))

        calls = {send(act=f"wait:{pipe}")}
        blocking = await asyncio.to_thread(pipe.open, "wb")  # returns once the process waits
        calls |= {send() for _ in range(QUEUE_SIZE + 1)}
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [call.result().status_code for call in done] == [503]
        try:
            yield blocking.close
        finally:
            blocking.close()
            await asyncio.wait(calls)


@pytest.mark.anyio
async def test_overloaded_service_is_called_again_after_its_pause(
    service: Service, async_client: AsyncClient, key: str, tmp_path: Path
) -> None:
    async with full_queue(service, key, tmp_path / "pipe") as unblock:
        before = rejections(service)
        call = asyncio.create_task(async_client.predict({"x": 7.0}, model="actor"))
        await asyncio.to_thread(until, lambda: rejections(service) == before + 1)
        unblock()
        assert (await call).prediction == 7.0
    assert rejections(service) == before + 1


@pytest.mark.anyio
async def test_overloaded_service_is_called_at_most_twice(
    service: Service, async_client: AsyncClient, key: str, tmp_path: Path
) -> None:
    async with full_queue(service, key, tmp_path / "pipe"):
        before = rejections(service)
        with pytest.raises(api.Unavailable) as overloaded:
            await async_client.predict({"x": 7.0}, model="actor")
        assert rejections(service) == before + 2
        with pytest.raises(api.Unavailable):
            await async_client.predict({"x": 7.0}, model="actor", deadline=0.5)
        assert rejections(service) == before + 3, "the pause is longer than the deadline"
    assert overloaded.value.retry_after == 1.0


def test_rate_of_a_key_is_honoured(service: Service, keys: dict[str, tuple[str, api_keys.ApiKey]]) -> None:
    with Client(service.url, api_key=keys["slow"][0]) as client:
        results = [client.predict(FLOWER) for _ in range(3)]
        assert len({result.request_id for result in results}) == 3
        with pytest.raises(api.RateLimited) as limited:
            client.predict(FLOWER, deadline=0.3)
    assert limited.value.retry_after


class Relay:
    """Accepts connections one by one, resets the first ones, and forwards one request of each other one."""

    def __init__(self, target: tuple[str, int], resets: int = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._target, self._resets, self.accepted = target, resets, 0
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _run(self) -> None:
        with suppress(OSError):  # the end of the listening socket
            while True:
                connection, _ = self._listening.accept()
                self.accepted += 1
                with connection:
                    request = _request(connection)
                    if self.accepted > self._resets:
                        self._respond(connection, request)
                    else:
                        # A lingering time of 0 s closes the connection with a reset.
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _respond(self, connection: socket.socket, request: bytes) -> None:
        with socket.create_connection(self._target) as onward:
            onward.sendall(request.replace(b"keep-alive", b"close"))
            while data := onward.recv(2**16):
                connection.sendall(data)


def _request(connection: socket.socket) -> bytes:
    """Return the bytes of one request."""
    data = b""
    while not (head := re.search(rb"(?i)content-length: (\d+).*?\r\n\r\n", data, re.DOTALL)):
        if data.endswith(b"\r\n\r\n"):
            return data
        data += connection.recv(2**16)
    while len(data) < head.end() + int(head[1]):
        data += connection.recv(2**16)
    return data


class OtherServer(Relay):
    """Sends the same bytes to each connection."""

    def __init__(self, response: bytes) -> None:
        super().__init__(("", 0))
        self._response, self.requests = response, list[bytes]()

    def _respond(self, connection: socket.socket, request: bytes) -> None:
        self.requests.append(request)
        connection.sendall(self._response)


@pytest.mark.parametrize("resets", [1, 2])
def test_reset_connection_is_retried_once(service: Service, key: str, resets: int) -> None:
    with Relay(service.address, resets) as relay, Client(relay.url, api_key=key) as client:
        if resets == 1:
            assert client.predict(FLOWER).model.name == "classifier"
        else:
            with pytest.raises(api.ConnectionFailed, match="POST http://127.0.0.1"):
                client.predict(FLOWER)
        assert relay.accepted == 2


def test_absent_service_is_a_failed_connection() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(api.ConnectionFailed):
        client.ready()


# -- streams


def test_streams_a_prediction(client: Client) -> None:
    with client.predict_stream({"x": 2.0, "act": "say:ä print:1"}, model="speaker") as stream:
        chunks = [*stream]

    assert chunks == ["ä", {"x": 2.0, "act": "print"}]
    assert stream.model == api.ModelVersion("speaker", "1")


@pytest.mark.anyio
async def test_streams_a_prediction_asynchronously(async_client: AsyncClient) -> None:
    async with async_client.predict_stream({"x": 2.0, "act": "say:a say:b"}, model="speaker") as stream:
        assert [chunk async for chunk in stream] == ["a", "b"]
    with pytest.raises(api.NotFound):
        async with async_client.predict_stream({"x": 2.0}, model="actor"):
            pass


def test_chunks_arrive_one_by_one(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    row = {"x": 2.0, "act": f"say:first wait:{tmp_path / 'pipe'}"}
    with client.predict_stream(row, model="speaker") as stream:
        chunks = iter(stream)
        assert next(chunks) == "first"
        (tmp_path / "pipe").write_text("")
        assert next(chunks)["act"] == "wait"


def test_failure_in_a_stream_follows_its_chunks(client: Client) -> None:
    with client.predict_stream({"x": 2.0, "act": "say:a raise:secret"}, model="speaker") as stream:
        chunks = iter(stream)
        assert next(chunks) == "a"
        with pytest.raises(api.ModelFailed):
            next(chunks)


def test_stream_left_early_releases_its_connection(service: Service, key: str, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with Client(service.url, api_key=key, model="speaker", max_connections=1) as client:
        with client.predict_stream({"x": 2.0, "act": f"say:a for:x end:{ended}"}) as stream:
            assert next(iter(stream)) == "a"
        assert client.predict({"x": 2.0}).prediction == 2.0
    until(ended.exists)


def test_cut_stream_is_not_complete() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Model-Name: speaker\r\n"
    with (
        OtherServer(head + b'X-Model-Version: 1\r\n\r\ndata: "a"\n\n') as other,
        Client(other.url) as client,
        client.predict_stream({"x": 2.0}) as stream,
    ):
        chunks = iter(stream)
        assert next(chunks) == "a"
        with pytest.raises(api.ConnectionFailed, match="before the prediction was complete"):
            next(chunks)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_may_be_cut_anywhere(size: int) -> None:
    stream = 'data: "a\u2028b\x85c"\n\n: comment\n\ndata: {\ndata: }\n\nevent: end\ndata: {}\n\n'.encode()
    parser = ChunkParser("id")

    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]

    assert [chunk for piece in pieces for chunk in parser.feed(piece)] == ["a\u2028b\x85c", {}]
    assert parser.is_complete


# -- operations


def test_reports_models_and_readiness(client: Client) -> None:
    listed = client.models()
    ready = client.ready()

    assert listed[0].name == "classifier"
    assert all(model.state == "live" and model.contract for model in listed)
    assert client.model("echo").uri == "models:/echo@champion"
    assert ready.is_ready
    assert [model.version for model in ready.models] == ["1"] * len(listed)


def test_records_feedback(client: Client) -> None:
    results = [client.predict({"x": 3.0}, model="actor") for _ in range(2)]
    identifiers = [str(result.prediction_id) for result in results]

    client.feedback(identifiers[0], np.float64(3.0))
    assert client.feedback_batch([Feedback(identifier, 4.0) for identifier in identifiers]) == 2
    with pytest.raises(api.NotFound):
        client.feedback(str(uuid4()), 1.0)


def test_journal_has_the_rows_of_a_table(client: Client, service: Service) -> None:
    frame = pd.DataFrame([VALUES, VALUES | {"n": 5, "x": None}])
    journal_reader = JournalReader(service.env["SERVING_JOURNAL_URL"])
    rows, table = (
        journal_reader.prediction(str(client.predict_batch(sent, model="echo").prediction_id))
        for sent in (frame.replace({np.nan: None}).to_dict("records"), frame)
    )

    for column in ("rows", "inputs", "outputs", "protocol"):
        assert table[column] == rows[column]


def test_scores_a_body_of_mlflow(client: Client, folders: dict[str, Path]) -> None:
    expected = mlflow.pyfunc.load_model(str(folders["whole"])).predict(pd.DataFrame({"x": [2.0]}))

    for body in (pd.DataFrame({"x": [2.0]}), {"inputs": {"x": [2.0]}}):
        result = client.score(body, model="whole")
        assert result.body == {"predictions": expected}
        assert result.model == api.ModelVersion("whole", "1")
    with pytest.raises(api.InvalidRequest, match="exactly one of"):
        client.score({}, model="whole")


@pytest.mark.anyio
async def test_asynchronous_client_has_the_same_methods(async_client: AsyncClient) -> None:
    predicted, listed, ready, scored = await asyncio.gather(
        async_client.predict(FLOWER),
        async_client.models(),
        async_client.ready(),
        async_client.score({"inputs": {"x": [2.0]}}, model="whole"),
    )
    batch = await async_client.predict_batch(pd.DataFrame([FLOWER]))

    assert batch.predictions[0].prediction == predicted.prediction
    assert listed[0] == await async_client.model("classifier")
    assert ready.is_ready
    assert scored.body
    actor = await async_client.predict({"x": 3.0}, model="actor")
    await async_client.feedback(str(actor.prediction_id), 3.0)

    def names(kind: type[Any]) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert names(AsyncClient) - {"aclose"} == names(Client) - {"close"}


def test_path_prefix_of_the_url_stays() -> None:
    with (
        OtherServer(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as other,
        Client(f"{other.url}/prefix/") as client,
        pytest.raises(api.NotFound),
    ):
        client.predict(FLOWER)
    assert other.requests[0].startswith(b"POST /prefix/predict HTTP/1.1")
