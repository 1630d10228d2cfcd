"""Helpers of promotion tests: models on a service, an MLflow server, and continuous clients."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import mlflow
import orjson
import requests
from cryptography.fernet import Fernet
from mlflow.exceptions import MlflowException

from tests.support.faulty_proxy import free_port
from tests.support.registry import Registry, quiet
from tests.support.service import Service, until

_BREATH_SECONDS = 0.02
# Frequent polls of a service with many models would slow it down.
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Model:
    """A scripted model that a service serves, with methods to promote and call it.

    Each version multiplies by its own number.
    """

    name: str
    service: Service
    registry: Registry
    selector: str = "/Production"

    @property
    def state(self) -> dict[str, Any]:
        """Return the entry of the model in `/ready`."""
        reference = f"models:/{self.name}{self.selector}"
        entry: dict[str, Any] = next(
            model for model in self.service.ready()["models"] if model["uri"] == reference
        )
        return entry

    def add(self, **part: Any) -> str:
        """Register a version that plays a part."""
        number = len(self.registry.client.search_model_versions(f"name='{self.name}'")) + 1
        return self.registry.add(self.name, **{"factor": float(number)} | part)

    def promote(self, version: str = "", *, archive: bool = True, **part: Any) -> str:
        """Move a version to Production; without one, register it first."""
        version = version or self.add(**part)
        self.registry.promote(self.name, version, archive=archive)
        return version

    def settle(self) -> None:
        """Promote the live version, so that a refused candidate is not retried."""
        self.promote(str(self.state["version"]))
        self.until(lambda state: state["candidate"] is None)

    def until(self, seen: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Wait until `seen` accepts the entry in `/ready`, and return the entry."""
        state: dict[str, Any] = {}

        def look() -> Any:
            state.clear()
            state.update(self.state)
            return seen(state)

        try:
            until(look, _PAUSE_SECONDS)
        except AssertionError as error:
            last = "\n".join([f"at the last look: {state}", *self.service.log[-40:]])
            raise AssertionError(last) from error
        return state

    def until_live(self, version: str) -> dict[str, Any]:
        return self.until(lambda state: state["version"] == version)

    def until_refused(self, version: str, state: str = "rejected") -> str:
        """Wait until this version is a candidate in a state, and return the reason."""
        expected = {"version": version, "state": state}
        entry = self.until(lambda seen: expected.items() <= (seen["candidate"] or {}).items())
        return str(entry["candidate"]["reason"])

    def tags(self, version: str) -> dict[str, str]:
        """Return the `serving.` tags of a version, without the prefix."""
        tags = self.registry.client.get_model_version(self.name, version).tags
        return {name.removeprefix("serving."): tags[name] for name in tags if name.startswith("serving.")}

    def until_tagged(self, version: str, state: str) -> dict[str, str]:
        """Wait until the tags of a version have a state, and return the tags."""
        until(lambda: self.tags(version).get("state") == state)
        return self.tags(version)

    def predict(self, x: float = 1.0, act: str | None = None) -> httpx.Response:
        row = {"x": x} | ({"act": act} if act else {})
        return self.service.client.post(f"/models/{quote(self.name)}/predict", json=row)

    def is_well(self, version: str) -> bool:
        """Check that the service is alive and that a live version predicts correctly."""
        assert self.service.client.get("/health").status_code == 200
        response = self.predict(3.0)
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["prediction"] == 3.0 * int(version), body
        assert response.headers["x-model-version"] == body["model"]["version"] == version
        return bool(self.state["version"] == version)


_MAX_SERVER_START_SECONDS = 150
"""Two processes import all of MLflow; without bytecode files this takes a minute on a busy machine."""


class Tracking:
    """`mlflow server` on an empty registry: it stores artifacts and sends webhooks to this machine."""

    def __init__(self, folder: Path, database: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = (folder / "server.log").open("wb")
        own = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_CACHE_TTL": "0",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        }
        command = ["--host", "127.0.0.1", "--port", self.url.rpartition(":")[2], "--workers", "1"]
        command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *command],
            env=os.environ | own,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            until(self._answers, max_seconds=_MAX_SERVER_START_SECONDS)
            self.registry = ServedRegistry(self.url, folder)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        with suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/health", timeout=60).ok
        return False


class ServedRegistry(Registry):
    """A registry behind an MLflow server, which stores the artifacts."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self.client = mlflow.MlflowClient(uri, uri)
        self._experiment = self.client.create_experiment("actors")

    def register(self, name: str, folder: Path) -> str:
        run = self.client.create_run(self._experiment)
        self.client.log_artifacts(run.info.run_id, str(folder), "model")
        self.client.set_terminated(run.info.run_id)
        with quiet():
            with suppress(MlflowException):  # it exists; a search for it finds nothing on old servers
                self.client.create_registered_model(name)
            source = f"{run.info.artifact_uri}/model"
            return str(self.client.create_model_version(name, source, run.info.run_id).version)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: its start, the version of the response, and the error, if any."""

    sent: float
    version: int
    fault: str


class Callers:
    """Clients that call a model continuously, each over one connection, with a pause between calls.

    The pause leaves CPU time for other work.
    """

    def __init__(self, model: Model, count: int = 4) -> None:
        self.calls: list[Call] = []
        self._address = model.service.address
        self._path = f"/models/{quote(model.name)}/predict"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.until_more(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def faults(self) -> list[Call]:
        return [call for call in self.calls if call.fault]

    @property
    def versions(self) -> list[int]:
        """Return the versions of successful responses, in the order of their first ones."""
        return list(dict.fromkeys(call.version for call in self.calls if not call.fault))

    def until_answered_by(self, version: str) -> None:
        """Wait until a version has served one of the last calls."""
        until(lambda: self.faults or any(call.version == int(version) for call in self.calls[-20:]))

    def until_more(self, calls: int = 50) -> None:
        """Wait for a number of further responses."""
        enough = len(self.calls) + calls
        until(lambda: len(self.calls) >= enough)

    def _call(self, number: int) -> None:
        chance = random.Random(number)
        connection = HTTPConnection(*self._address, timeout=60)
        while not self._stopping.wait(_BREATH_SECONDS):
            numbers = [float(chance.randrange(1000)) for _ in range(chance.choice((1, 1, 1, 5)))]
            sent = time.monotonic()
            try:
                self.calls.append(Call(sent, *self._ask(connection, numbers)))
            except (OSError, HTTPException) as error:
                self.calls.append(Call(sent, 0, repr(error)))
                connection.close()
        connection.close()

    def _ask(self, connection: HTTPConnection, numbers: Sequence[float]) -> tuple[int, str]:
        rows = [{"x": x} for x in numbers]
        one = len(rows) == 1
        body = orjson.dumps(rows[0] if one else {"rows": rows})
        path = self._path if one else f"{self._path}/batch"
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            return 0, f"{response.status} {content!r}"
        result = orjson.loads(content)
        version = result["model"]["version"]
        values = [row["prediction"] for row in ([result] if one else result["predictions"])]
        expected = [x * int(version) for x in numbers]
        fine = response.headers["x-model-version"] == version and values == expected
        return int(version), "" if fine else f"{response.headers} {result} for {numbers}"


def flip_bit(file: Path) -> None:
    """Change one bit of a file, like a disk error."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """Keep the first half of a file."""
    os.truncate(file, file.stat().st_size // 2)
