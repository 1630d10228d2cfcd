"""Compressed requests and responses, through every endpoint that has a body."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pyarrow as pa
import pytest

from serving.errors import BodyTooLarge, Malformed, UnsupportedEncoding
from serving.http.request_decompression import decompress, request_coding
from serving.http.response_compression import accepted_coding, compressing
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served

MAX_BODY_BYTES = 2**20
JSON = {"Content-Type": "application/json"}


def zstd(content: bytes) -> bytes:
    """Compress with zstd."""
    compressed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return compressed


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd}
every_coding = pytest.mark.parametrize("coding", COMPRESS)
TENSORS = [{"name": "x", "datatype": "FP64", "shape": [1], "data": [2.0]}]
BODIES: Mapping[str, Any] = {
    "/predict": {"x": 2.0},
    "/predict/batch": {"rows": [{"x": 2.0}]},
    "/predict/stream": {"x": 2.0, "act": "say:hello"},
    "/models/actor/predict": {"x": 2.0},
    "/models/actor/versions/1/predict/batch": {"rows": [{"x": 2.0}]},
    "/invocations": {"dataframe_records": [{"x": 2.0}]},
    "/v2/models/actor/infer": {"inputs": TENSORS},
    "/feedback": {"prediction_id": "unknown", "outcome": 1.0},
    "/webhooks/mlflow": {},
}


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("coding")
    registry = Registry(new_registry(folder))
    registry.add("actor", streams=True, factor=2.0)
    settings = {"models": "models:/actor/1", "max_body_bytes": MAX_BODY_BYTES, "poll_seconds": SELDOM}
    settings |= {"journal_url": f"sqlite:///{folder}/journal.db", "webhook_secret": "secret"}
    with served(registry.uri, folder, **settings) as running:
        running.until_ready()
        yield running


def post(service: Service, path: str, body: bytes, **headers: str) -> httpx.Response:
    return service.client.post(path, content=body, headers=JSON | headers)


def raw(service: Service, method: str, path: str, **more: Any) -> tuple[httpx.Response, bytes]:
    """Return a response and its body before decompression."""
    with service.client.stream(method, path, **more) as response:
        return response, b"".join(response.iter_raw())


def batch(rows: int) -> bytes:
    return json.dumps({"rows": [{"x": index / 7} for index in range(rows)]}).encode()


# -- requests


@every_coding
@pytest.mark.parametrize("path", BODIES)
def test_every_endpoint_accepts_compressed_bodies(service: Service, path: str, coding: str) -> None:
    body = json.dumps(BODIES[path]).encode()
    plain = post(service, path, body)
    compressed = post(service, path, COMPRESS[coding](body), **{"Content-Encoding": coding})
    assert compressed.status_code == plain.status_code
    assert compressed.status_code != 415
    if plain.is_success:
        assert compressed.text.replace(compressed.headers["x-request-id"], "") == plain.text.replace(
            plain.headers["x-request-id"], ""
        )


@every_coding
def test_invalid_compressed_bodies_are_malformed(service: Service, coding: str) -> None:
    body = COMPRESS[coding](batch(10))
    for invalid in (body[:-1], body[:3], batch(10), body + b"more", body + body[:-5], b""):
        response = post(service, "/predict/batch", invalid, **{"Content-Encoding": coding})
        assert response.status_code == 400, invalid[:20]
        assert response.headers["content-type"] == "application/problem+json"


@every_coding
@pytest.mark.parametrize("path", BODIES)
def test_bomb_exceeds_the_limit_of_every_endpoint(service: Service, path: str, coding: str) -> None:
    bomb = COMPRESS[coding](bytes(8 * MAX_BODY_BYTES))
    assert len(bomb) < 2**16
    assert post(service, path, bomb, **{"Content-Encoding": coding}).status_code == 413


@pytest.mark.parametrize("value", ["br", "deflate", "gzip, gzip", "zstd,gzip", "gzip;q=1", "*"])
@pytest.mark.parametrize("path", BODIES)
def test_other_codings_are_unsupported(service: Service, path: str, value: str) -> None:
    response = post(service, path, b"{}", **{"Content-Encoding": value})
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, zstd"


@pytest.mark.parametrize(
    ("values", "coding"),
    [
        ([], None),
        ([b""], None),
        ([b"identity"], None),
        ([b"Identity, identity"], None),
        ([b" GZip "], "gzip"),
        ([b"x-gzip"], "gzip"),
        ([b"identity", b"zstd"], "zstd"),
    ],
)
def test_content_encoding_is_read(values: list[bytes], coding: str | None) -> None:
    assert request_coding(values) == coding


def test_codings_of_two_headers_are_stacked() -> None:
    with pytest.raises(UnsupportedEncoding):
        request_coding([b"gzip", b"gzip"])


@pytest.mark.anyio
@every_coding
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 500_000])
async def test_bodies_of_any_size_are_decompressed(coding: str, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    cut = size // 3
    for body in (
        COMPRESS[coding](content),
        COMPRESS[coding](content[:cut]) + COMPRESS[coding](content[cut:]),
    ):
        assert await decompress(coding, body, 500_000) == content
        assert await decompress(coding, body, max(size, 1)) == content
        if size > 1:
            with pytest.raises(BodyTooLarge):
                await decompress(coding, body, size - 1)
        with pytest.raises(Malformed):
            await decompress(coding, body[:-1], 500_000)


@pytest.mark.anyio
@every_coding
async def test_bomb_does_not_fill_the_memory(coding: str) -> None:
    body = COMPRESS[coding](bytes(2**28))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            await decompress(coding, body, MAX_BODY_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BODY_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.anyio
@every_coding
@pytest.mark.parametrize(("frames", "size"), [(1, 2**24), (20_000, 0)], ids=["large", "empty frames"])
async def test_other_tasks_run_during_decompression(coding: str, frames: int, size: int) -> None:
    body = COMPRESS[coding](bytes(size)) * frames
    task = asyncio.create_task(decompress(coding, body, 2**24))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    assert len(await task) == size


# -- responses


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.9", "gzip"),
        ("gzip;q=0.5 , zstd; q=0.8", "zstd"),
        ("GZIP;Q=0.5", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000, zstd;q=0", None),
        ("gzip;q=0, *", None),
        ("*", "gzip"),
        ("*;q=0", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("br", None),
        ("gzip;q=2", None),
        ("gzip;q=x", None),
        ("gzip" + "," * 300, None),
    ],
)
def test_client_weights_select_the_coding(accepted: str, coding: str | None) -> None:
    assert accepted_coding([(b"accept-encoding", accepted.encode())]) == coding


@every_coding
@pytest.mark.parametrize("rows", [200, 20_000])
def test_large_predictions_are_compressed(service: Service, coding: str, rows: int) -> None:
    plain, expected = raw(
        service,
        "POST",
        "/predict/batch",
        content=batch(rows),
        headers=JSON | {"Accept-Encoding": "identity"},
    )
    assert "content-encoding" not in plain.headers
    response, body = raw(
        service, "POST", "/predict/batch", content=batch(rows), headers=JSON | {"Accept-Encoding": coding}
    )
    assert response.headers["content-encoding"] == coding
    assert int(response.headers["content-length"]) == len(body) < len(expected)
    for headers in (plain.headers, response.headers):
        assert headers.get_list("vary") == ["accept-encoding"]
    assert pa.CompressedInputStream(pa.BufferReader(body), coding).read() == expected


def test_small_responses_are_not_compressed(service: Service) -> None:
    for method, path, body in (("POST", "/predict", b'{"x":1}'), ("GET", "/health", b"")):
        response, _ = raw(
            service, method, path, content=body, headers=JSON | {"Accept-Encoding": "gzip, zstd"}
        )
        assert "content-encoding" not in response.headers
        assert "vary" not in response.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/metrics", "/status", "/page/app.js"])
def test_other_routes_are_compressed(service: Service, path: str) -> None:
    plain, expected = raw(service, "GET", path, headers={"Accept-Encoding": "identity"})
    response, body = raw(service, "GET", path, headers={"Accept-Encoding": "gzip"})
    is_large = len(expected) > 1024
    assert response.headers.get("content-encoding") == ("gzip" if is_large else None)
    assert int(response.headers["content-length"]) == len(body)
    content = gzip.decompress(body) if is_large else body
    if path not in ("/metrics", "/status"):
        assert content == expected
    assert (
        plain.headers.get("vary") == response.headers.get("vary") == ("accept-encoding" if is_large else None)
    )


def test_compressed_files_are_revalidated(service: Service) -> None:
    for coding in ("gzip", "zstd", "identity"):
        headers = {"Accept-Encoding": coding}
        tag = service.client.get("/page/app.js", headers=headers).headers["etag"]
        assert tag.startswith('W/"' if coding != "identity" else '"')
        for value in (tag, f'"other", {tag}'):
            response = service.client.get("/page/app.js", headers=headers | {"If-None-Match": value})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["vary"] == "Accept-Encoding"
        other = {"If-None-Match": '"other"'}
        assert service.client.get("/page/app.js", headers=headers | other).status_code == 200


def test_head_has_the_headers_of_get(service: Service) -> None:
    for coding in ("gzip", "identity"):
        headers = {"Accept-Encoding": coding}
        got = service.client.get("/page/app.js", headers=headers).headers
        head = service.client.head("/page/app.js", headers=headers)
        assert head.content == b""
        for name in ("content-encoding", "content-length", "etag", "vary"):
            assert head.headers.get(name) == got.get(name)


def test_large_errors_are_compressed(service: Service) -> None:
    body = json.dumps({"x": 1.0} | {f"unknown-{index}": 1 for index in range(100)}).encode()
    response, content = raw(
        service, "POST", "/predict", content=body, headers=JSON | {"Accept-Encoding": "gzip"}
    )
    assert (response.status_code, response.headers["content-encoding"]) == (422, "gzip")
    assert json.loads(gzip.decompress(content))["status"] == 422


def test_event_streams_are_not_compressed(service: Service) -> None:
    body = json.dumps({"x": 1.0, "act": " ".join(f"say:{'word' * 20}" for _ in range(50))}).encode()
    response, content = raw(
        service, "POST", "/predict/stream", content=body, headers=JSON | {"Accept-Encoding": "gzip"}
    )
    assert "content-encoding" not in response.headers
    assert content.count(b"data: ") == 51


def test_parquet_is_not_compressed_again(service: Service) -> None:
    records = json.dumps({"dataframe_records": [{"x": float(index)} for index in range(2000)]}).encode()
    for media_type, coding in (("application/vnd.apache.parquet", None), ("text/csv", "gzip")):
        response, content = raw(
            service,
            "POST",
            "/invocations",
            content=records,
            headers=JSON | {"Accept": media_type, "Accept-Encoding": "gzip"},
        )
        assert response.headers["content-type"].startswith(media_type)
        assert len(content) > 1024
        assert response.headers.get("content-encoding") == coding


def collected(messages: list[dict[str, Any]], accepted: bytes = b"gzip") -> list[dict[str, Any]]:
    """Return what reaches the server of an application's messages, one list of messages at a time."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        compressed = compressing([(b"accept-encoding", accepted)], send)
        for message in messages:
            await compressed(message)

    asyncio.run(run())
    return sent


def test_stream_starts_before_its_first_part() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    assert collected([start]) == [start]
    part = {"type": "http.response.body", "body": b"part" * 1000, "more_body": True}
    assert collected([start, part]) == [start, part]


def test_encoded_response_is_not_encoded_again() -> None:
    body = zlib.compress(bytes(range(256)) * 20, 1, 31) + bytes(2000)
    headers = [(b"content-encoding", b"gzip"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    sent = collected([start, {"type": "http.response.body", "body": body}])
    assert sent[0]["headers"] == headers
    assert sent[1]["body"] == body


def test_incompressible_response_stays_as_it_is() -> None:
    body = zlib.compress(str([index**7 % 10_007 for index in range(5000)]).encode(), 9)
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-length", b"%d" % len(body))],
    }
    sent = collected([start, {"type": "http.response.body", "body": body}])
    assert sent[1]["body"] == body
    assert (b"vary", b"accept-encoding") in sent[0]["headers"]
    assert b"content-encoding" not in dict(sent[0]["headers"])
