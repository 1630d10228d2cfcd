"""The registry that fronts look at: an MLflow server on PostgreSQL, and what a front's calls cost it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from threading import Thread
from urllib.parse import quote

import urllib3

from benchmarks import service
from benchmarks.load import drive
from serving.registry.decisions import next_poll_delay, retry_delay

_API = "/api/2.0/mlflow"
_NAME, _NEWEST = "m000001", "last_updated_timestamp DESC"
CALLS = {
    "look": f"{_API}/model-versions/search?filter={quote(f'name={_NAME!r}')}&max_results=200000",
    "marker": f"{_API}/model-versions/search?max_results=5&order_by={quote(_NEWEST)}"
    f"&order_by={quote('name ASC')}&order_by={quote('version_number DESC')}",
    "aliases": f"{_API}/registered-models/get?name={_NAME}",
    "location": f"{_API}/model-versions/get-download-uri?name={_NAME}&version=1",
    "tags": f"{_API}/model-versions/get?name={_NAME}&version=1",
    "tag": f"{_API}/model-versions/set-tag",
}
"""What a front asks, by the names that this benchmark has for it."""
_TAG = {"name": _NAME, "version": "1", "key": "serving.state", "value": "live"}
_CONNECTIONS = 8
SECONDS_OF_PATIENCE = 3.0
"""After which a front gives a call up."""
_LONGEST_LOOK, _POLL_SECONDS, _QUICK_SECONDS = 10.0, 1.0, 0.2

# Registered models with a version each, as the server itself writes them.
_POPULATE = """
INSERT INTO registered_models (workspace, name, creation_time, last_updated_time)
  SELECT 'default', 'm' || lpad(n::text, 6, '0'), n, n FROM generate_series(1, {models}) n
  ON CONFLICT DO NOTHING;
INSERT INTO model_versions
  (workspace, name, version, creation_time, last_updated_time, current_stage, source, run_id, status)
  SELECT 'default', name, 1, creation_time, creation_time, 'Production', 'mlflow-artifacts:/' || name, '',
    'READY' FROM registered_models ON CONFLICT DO NOTHING;
ANALYZE;
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Calls a second that the server answers at most; `models` are registered, `workers` answer."""

    call: str
    models: int
    workers: int
    rate: float
    failed: int


@dataclass(frozen=True, slots=True)
class Herd:
    """What so many clients that look as fronts do saw: looks a second, their seconds, the share in vain."""

    fronts: int
    restrained: bool
    rate: float
    p50: float
    p99: float
    failed: float


def populate(uri: str, models: int) -> None:
    """Have so many models with a version in Production registered, besides what there is."""
    import psycopg

    with closing(psycopg.connect(uri, autocommit=True)) as connection:
        for statement in _POPULATE.format(models=models).split(";")[:-1]:
            connection.execute(statement.encode())


@contextmanager
def server(folder: Path, uri: str, workers: int) -> Iterator[str]:
    """Run an MLflow server on a database, with a line for each request in `mlflow.log`; gives its URL."""
    port = service.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", uri.replace("postgresql:", "postgresql+psycopg2:")]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with service.running(command, f"http://127.0.0.1:{port}/health", folder / "mlflow.log", env) as url:
        yield url


def cost(url: str, folder: Path, call: str, models: int, workers: int, seconds: float) -> Cost:
    """How many of one kind of call the server answers in a second.

    Raises:
        NoWrk: wrk is not installed.
    """
    body = _TAG if call == "tag" else None
    found = drive(f"{url}{CALLS[call]}", body, folder, connections=_CONNECTIONS, seconds=seconds)
    return Cost(call, models, workers, found.rate, found.failed)


def herd(url: str, fronts: int, seconds: float, *, restrained: bool) -> Herd:
    """Look every second as so many fronts do that follow a model each, with their patience and their rests.

    Only the last two thirds of the time count. Without restraint they rest for a second however slow it is.
    """
    _until_free(url)
    looks: list[Look] = []
    began = time.monotonic()
    shared = (began + seconds, restrained, looks)
    threads = [Thread(target=_follow, args=(url, number, *shared)) for number in range(fronts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = [look for look in looks if began + seconds / 3 <= look.at < began + seconds]
    answered = sorted(look.seconds for look in counted if look.answered) or [float("nan")]
    failed = sum(not look.answered for look in counted) / len(counted)
    p99 = answered[int(0.99 * (len(answered) - 1))]
    return Herd(fronts, restrained, len(counted) / (seconds * 2 / 3), median(answered), p99, failed)


@dataclass(frozen=True, slots=True)
class Look:
    """When a client looked, how long that took, and whether it was answered."""

    at: float
    seconds: float
    answered: bool


def _follow(url: str, number: int, ends: float, restrained: bool, looks: list[Look]) -> None:
    misses, seconds, chance = 0, 0.0, Random(number)
    time.sleep(chance.uniform(0, _POLL_SECONDS))
    with urllib3.PoolManager(maxsize=1) as connection:
        while (began := time.monotonic()) < ends:
            fine = _look(connection, url)
            waited = time.monotonic() - began
            looks.append(Look(began, waited, fine))
            misses = 0 if fine else misses + 1
            seconds = next_poll_delay(_POLL_SECONDS, waited, seconds) if restrained else _POLL_SECONDS
            time.sleep(max(seconds, retry_delay(misses, _LONGEST_LOOK) if misses else 0))


def _until_free(url: str) -> None:
    """Wait until the server has done with what others have given up."""
    quick = 0
    with urllib3.PoolManager() as connection:
        while quick < 5:
            began = time.monotonic()
            quick = quick + 1 if _look(connection, url) and time.monotonic() - began < _QUICK_SECONDS else 0


def _look(connection: urllib3.PoolManager, url: str) -> bool:
    """Whether a look is answered; as MLflow's client makes it, who notices where the server has hung up."""
    try:
        answer = connection.request("GET", url + CALLS["look"], timeout=SECONDS_OF_PATIENCE, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == 200


def asked(log: Path, since: int = 0) -> Counter[str]:
    """How often each route was asked, as the server's log tells behind its first `since` bytes."""
    with log.open("rb") as lines:
        lines.seek(since)
        text = lines.read().decode(errors="replace")
    found: Counter[str] = Counter()
    for path in re.findall(r'"\w+ (/\S+) HTTP', text):
        found[_kind(path)] += 1
    return found


def _kind(path: str) -> str:
    route = path.partition("?")[0]
    if route.endswith("/model-versions/search"):
        return "marker" if "order_by" in path else "look"
    kinds = {call: asked.partition("?")[0] for call, asked in CALLS.items() if call not in ("look", "marker")}
    named = next((call for call, known in kinds.items() if route == known), None)
    return named or ("artifacts" if "mlflow-artifacts" in route else os.path.basename(route))
