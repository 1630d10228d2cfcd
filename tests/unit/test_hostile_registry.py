"""A registry with huge or endless responses counts as away, and uses no memory or thread."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from serving.errors import RegistryUnavailable
from serving.promotion_errors import UntrustedArtifact
from serving.reference import Reference
from serving.registry import blocking_calls, bounded_http, client, mlflow_entities
from serving.settings.groups import RegistrySettings

REFERENCE = Reference.parse("models:/iris/3")
BOMB = gzip.compress(b" " * (bounded_http.MAX_RESPONSE_BYTES + 1))


class Hostile(BaseHTTPRequestHandler):
    """Handles a request in the mode that the first part of its path names."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        with suppress(OSError):
            if kind == "head":
                self._trickle()
            self.send_response(200)
            if kind == "bomb":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            if kind == "bomb":
                self.wfile.write(BOMB)
            elif kind == "garbage":
                self.wfile.write(b'{"model_version": {"version": "many", "tags": [5, {}]}}')
            elif kind == "endless":
                while True:
                    self.wfile.write(b" " * 2**20)
            else:
                self._trickle()

    def _trickle(self) -> None:
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("endless", "larger than"),
        ("bomb", "larger than"),
        ("body", "not complete after"),
        ("head", "no complete response"),
        ("garbage", "iris version 3|models:/iris/3"),
    ],
)
async def test_registry_with_unbounded_responses_is_away(
    address: str, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    monkeypatch.setattr(bounded_http, "MAX_RESPONSE_SECONDS", 0.5)
    monkeypatch.setattr(client, "_MAX_CALL_SECONDS", 2.0)
    registry = client.RegistryClient(RegistrySettings(MLFLOW_TRACKING_URI=f"{address}/{kind}"))
    _ = await blocking_calls.start(lambda: registry._client, name="registry")
    with pytest.raises(RegistryUnavailable, match=reason):
        await registry.resolve(REFERENCE)
    assert registry.reachable is False


@pytest.mark.anyio
async def test_part_of_a_file_may_be_larger_than_a_response_of_the_registry(address: str) -> None:
    bounded_http.install(blocking_calls.thread_name("registry"))

    def fetch(max_bytes: int) -> int:
        bounded_http.set_timeout(10, 10, max_bytes)
        return len(requests.get(f"{address}/bomb").content)

    size = bounded_http.MAX_RESPONSE_BYTES + 1
    assert await blocking_calls.start(fetch, bounded_http.MAX_PART_BYTES, name="download") == size
    with pytest.raises(requests.RequestException, match="larger than"):
        await blocking_calls.start(fetch, bounded_http.MAX_RESPONSE_BYTES, name="download")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"a": "b"}, {"a": "b"}),
        ({"a": "x\x00\x1b[31m\ny"}, {"a": "x  [31m y"}),
        ({"a": 5, "b": None, "c": ["d"]}, {}),
        ({"a": "x" * 10**6}, {"a": "x" * mlflow_entities.MAX_TAG_LENGTH}),
    ],
)
def test_tags_are_printable_and_bounded(tags: dict[str, Any], expected: dict[str, str]) -> None:
    assert mlflow_entities.bounded(tags) == expected


def test_number_of_tags_is_bounded() -> None:
    assert (
        len(mlflow_entities.bounded({str(number): "" for number in range(10_000)}))
        == mlflow_entities.MAX_TAGS
    )


class NamedElsewhere:
    """A registry client whose runs and logged models are in the folder /models."""

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(artifact_uri=f"/models/{run_id}/"))

    def get_logged_model(self, model_id: str) -> Any:
        return SimpleNamespace(artifact_location=f"/models/{model_id}")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("runs:/5/model", "/models/5/model"),
        ("RUNS:/5/model", "/models/5/model"),
        ("models:/m-5", "/models/m-5"),
        ("s3://models/iris", "s3://models/iris"),
        ("/models/iris", "/models/iris"),
    ],
)
def test_location_of_a_run_or_model_is_resolved(location: str, expected: str) -> None:
    assert mlflow_entities.underlying(NamedElsewhere(), location) == expected


def test_location_that_names_another_model_is_refused() -> None:
    with pytest.raises(UntrustedArtifact, match="named by another model"):
        mlflow_entities.underlying(NamedElsewhere(), "models:/iris/Production")
