"""Malicious bodies are rejected in the format of their protocol, and the service stays up."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served

SECRET = "hunter2"
MAX_BODY_BYTES = 2**20
JSON = {"Content-Type": "application/json"}
INPUTS = "x: double, act: string?, many: long?, ok: boolean?"
TYPES = {"x": "FP64", "act": "BYTES", "many": "INT64", "ok": "BOOL"}


def tensors(row: dict[str, str]) -> str:
    """Return a body of the inference protocol for a row whose values are JSON."""
    form = '{{"name": "{}", "datatype": "{}", "shape": [1], "data": [{}]}}'
    parts = (form.format(name, TYPES.get(name, "FP64"), value) for name, value in row.items())
    return f'{{"inputs": [{", ".join(parts)}]}}'


def record(row: dict[str, str]) -> str:
    """Return a JSON object for a row whose values are JSON."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in row.items()) + "}"


BODIES: dict[str, Callable[[dict[str, str]], str]] = {
    "/predict": record,
    "/predict/batch": lambda row: f'{{"rows": [{record(row)}]}}',
    "/invocations": lambda row: f'{{"dataframe_records": [{record(row)}]}}',
    "/v2/models/actor/infer": tensors,
}
"""Functions that build the body of a route from a row whose values are JSON."""
TYPED = ("/predict", "/predict/batch")
every_route = pytest.mark.parametrize("path", BODIES)


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("hostile")
    registry = Registry(new_registry(folder))
    registry.add("actor", inputs=INPUTS, factor=2.0)
    settings = {"models": "models:/actor/1", "max_body_bytes": MAX_BODY_BYTES, "poll_seconds": SELDOM}
    with served(registry.uri, folder, **settings) as running:
        running.until_ready()
        yield running


@pytest.fixture(autouse=True)
def all_is_well(service: Service) -> Iterator[None]:
    """Verify after each test that the service is up and predicts correctly."""
    yield
    assert service.client.get("/health").status_code == 200
    for path, body in BODIES.items():
        response = service.client.post(path, content=body({"x": "21"}), headers=JSON)
        assert response.status_code == 200, response.text
        assert "42.0" in response.text


def refuses(response: httpx.Response, *statuses: int) -> None:
    """Verify that a response is an error of its protocol with one of these statuses."""
    text = response.text
    assert len(response.content) <= 8192
    assert SECRET not in text
    assert "Traceback" not in text
    reported = response.json()
    if response.request.url.path in TYPED:
        assert response.status_code == reported["status"], text
        assert response.status_code in statuses, text
        assert response.headers["content-type"] == "application/problem+json"
        assert reported["request_id"] == response.headers["x-request-id"]
    else:
        assert response.status_code in [400 if status == 422 else status for status in statuses], text
        assert reported.get("error_code") or reported.get("error"), text


def post(service: Service, path: str, body: Any, headers: dict[str, str] = JSON) -> httpx.Response:
    return service.client.post(path, content=body, headers=headers)


# -- values


@every_route
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"1"'])
def test_row_25_non_finite_number_is_rejected(service: Service, path: str, value: str) -> None:
    refuses(post(service, path, BODIES[path]({"x": value})), 400, 422)


@every_route
def test_row_26_duplicate_field_is_rejected(service: Service, path: str) -> None:
    body = BODIES[path]({"x": "1"})
    for name in ("x", "inputs", "dataframe_records", "rows"):
        if (field := f'"{name}": ') in body:
            refuses(post(service, path, body.replace(field, f"{field}1, {field}", 1)), 400)


@pytest.mark.parametrize("path", TYPED)
def test_row_26_unknown_field_is_rejected_by_typed_routes(service: Service, path: str) -> None:
    refuses(post(service, path, BODIES[path]({"x": "1", SECRET: "1"}).replace(SECRET, "stranger")), 422)


@every_route
@pytest.mark.parametrize("digits", [str(2**63), str(-(2**63) - 1), "9" * 5000], ids=["2⁶³", "-2⁶³", "5,000"])
def test_row_27_integer_beyond_64_bits_is_rejected(service: Service, path: str, digits: str) -> None:
    refuses(post(service, path, BODIES[path]({"x": "1", "many": digits})), 422 if len(digits) < 100 else 400)


@every_route
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("x", "true"),
        ("x", '"1.5"'),
        ("x", "[1.5]"),
        ("many", "1.9"),
        ("many", "true"),
        ("many", '"1"'),
        ("ok", "1"),
        ("ok", '"true"'),
        ("act", "1"),
        ("act", "true"),
    ],
)
def test_row_38_value_of_another_type_is_rejected(
    service: Service, path: str, column: str, value: str
) -> None:
    refuses(post(service, path, BODIES[path]({"x": "1"} | {column: value})), 422)


# -- JSON


@every_route
@pytest.mark.parametrize("opening", ["[", '{"x":', '[{"x":'], ids=["lists", "objects", "both"])
def test_row_28_deep_nesting_is_rejected(service: Service, path: str, opening: str) -> None:
    refuses(post(service, path, opening * (250_000 // len(opening))), 400)
    refuses(post(service, path, BODIES[path]({"x": opening * (250_000 // len(opening))})), 400)


@every_route
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.replace(b"hush", b"\xff\xfe"),
        lambda body: body.decode().encode("utf-16"),
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.replace(b"hush", b"\\ud800"),
        lambda body: body.replace(b"hush", b"\xed\xa0\x80"),
        lambda body: body.replace(b"hush", b"\x00"),
        lambda body: body[:-1],
        lambda body: body + b"{}",
        lambda body: b"",
    ],
    ids=["invalid", "UTF-16", "BOM", "lone surrogate", "surrogate", "NUL", "cut off", "two", "nothing"],
)
def test_row_29_malformed_json_or_utf_8_is_rejected(
    service: Service, path: str, spoil: Callable[[bytes], bytes]
) -> None:
    refuses(post(service, path, spoil(BODIES[path]({"x": "1", "act": '"hush"'}).encode())), 400)


# -- head


@every_route
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=utf-16"},
        JSON | {"Content-Encoding": "gzip, gzip"},
        JSON | {"Content-Encoding": "br"},
        JSON | {"Content-Encoding": "made-up"},
    ],
    ids=str,
)
def test_row_30_other_content_types_are_rejected(
    service: Service, path: str, headers: dict[str, str]
) -> None:
    refuses(post(service, path, BODIES[path]({"x": "1"}), headers), 415)


@every_route
def test_row_30_compression_bomb_is_not_unpacked(service: Service, path: str) -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    refuses(post(service, path, bomb, JSON | {"Content-Encoding": "gzip"}), 413)


@every_route
@pytest.mark.parametrize("value", ["soon", "-1", "1e3", "", "1" * 30, "nan"])
def test_invalid_timeout_is_rejected(service: Service, path: str, value: str) -> None:
    refuses(post(service, path, BODIES[path]({"x": "1"}), JSON | {"X-Request-Timeout": value}), 400)


@every_route
def test_caller_may_shorten_the_deadline(service: Service, path: str) -> None:
    body = BODIES[path]({"x": "1", "act": '"toil:0.2"'})
    refuses(post(service, path, body, JSON | {"X-Request-Timeout": "0.01"}), 504)
    assert post(service, path, body, JSON | {"X-Request-Timeout": "60"}).status_code == 200


# -- size


@every_route
def test_row_31_oversized_body_is_rejected(service: Service, path: str) -> None:
    large = b" " * (MAX_BODY_BYTES + 1)
    refuses(post(service, path, large), 413)
    refuses(post(service, path, (large[: 2**16] for _ in range(17))), 413)


def test_row_28_a_million_tiny_chunks_use_no_memory(service: Service) -> None:
    before = memory(service)
    with socket.create_connection(service.address, timeout=60) as connection:
        head = "Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
        connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n\r\n".encode())
        for _ in range(100):
            connection.sendall(b"1\r\n \r\n" * 10_000)
        connection.sendall(b'8\r\n{"x": 4}\r\n0\r\n\r\n')
        response = connection.recv(65536)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b'"prediction":8.0' in response
    assert memory(service) - before < 20


def memory(service: Service) -> float:
    """Return the resident memory of the front, in MB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
