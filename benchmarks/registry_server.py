"""An MLflow server on PostgreSQL, and the cost of the calls that a front makes."""

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

from benchmarks import servers
from benchmarks.wrk import drive
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
"""Paths of the calls that a front makes, by their names in this benchmark."""
_TAG = {"name": _NAME, "version": "1", "key": "serving.state", "value": "live"}
_CONNECTIONS = 8
TIMEOUT_SECONDS = 3.0
"""Timeout of a front's call."""
_MAX_POLL_SECONDS, _POLL_SECONDS, _QUICK_SECONDS = 10.0, 1.0, 0.2

# Registered models with one version each, inserted with the columns that the server itself writes.
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
    """Maximum calls per second of the server; `models` are registered, and `workers` handle calls."""

    call: str
    models: int
    workers: int
    rate: float
    failed: int


@dataclass(frozen=True, slots=True)
class PollStats:
    """Measurements of clients that poll like fronts: polls/s, latencies, and share of failed polls."""

    fronts: int
    restrained: bool
    rate: float
    p50: float
    p99: float
    failed: float


def populate(uri: str, models: int) -> None:
    """Add registered models with one version in Production, until there are this many."""
    import psycopg

    with closing(psycopg.connect(uri, autocommit=True)) as connection:
        for statement in _POPULATE.format(models=models).split(";")[:-1]:
            connection.execute(statement.encode())


@contextmanager
def server(folder: Path, uri: str, workers: int) -> Iterator[str]:
    """Run an MLflow server on a database, with one line per request in `mlflow.log`; yield its URL."""
    port = servers.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", uri.replace("postgresql:", "postgresql+psycopg2:")]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with servers.running(command, f"http://127.0.0.1:{port}/health", folder / "mlflow.log", env) as url:
        yield url


def cost(url: str, folder: Path, call: str, models: int, workers: int, seconds: float) -> Cost:
    """Measure how many calls of one kind the server handles per second.

    Raises:
        WrkNotInstalled: wrk is not installed.
    """
    body = _TAG if call == "tag" else None
    result = drive(f"{url}{CALLS[call]}", body, folder, connections=_CONNECTIONS, seconds=seconds)
    return Cost(call, models, workers, result.rate, result.failed)


def poll_as_fronts(url: str, fronts: int, seconds: float, *, restrained: bool) -> PollStats:
    """Poll every second like this many fronts that follow one model each, with their timeout and delays.

    Only the last two thirds of the time count. Without restraint, the delay is always one second.
    """
    _wait_until_idle(url)
    polls: list[Poll] = []
    began = time.monotonic()
    shared = (began + seconds, restrained, polls)
    threads = [Thread(target=_poll_repeatedly, args=(url, number, *shared)) for number in range(fronts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = [poll for poll in polls if began + seconds / 3 <= poll.at < began + seconds]
    succeeded = sorted(poll.seconds for poll in counted if poll.succeeded) or [float("nan")]
    failed = sum(not poll.succeeded for poll in counted) / len(counted)
    p99 = succeeded[int(0.99 * (len(succeeded) - 1))]
    return PollStats(fronts, restrained, len(counted) / (seconds * 2 / 3), median(succeeded), p99, failed)


@dataclass(frozen=True, slots=True)
class Poll:
    """Time and duration of one poll, and whether it succeeded."""

    at: float
    seconds: float
    succeeded: bool


def _poll_repeatedly(url: str, number: int, ends: float, restrained: bool, polls: list[Poll]) -> None:
    failures, seconds, chance = 0, 0.0, Random(number)
    time.sleep(chance.uniform(0, _POLL_SECONDS))
    with urllib3.PoolManager(maxsize=1) as connection:
        while (began := time.monotonic()) < ends:
            succeeded = _poll(connection, url)
            waited = time.monotonic() - began
            polls.append(Poll(began, waited, succeeded))
            failures = 0 if succeeded else failures + 1
            seconds = next_poll_delay(_POLL_SECONDS, waited, seconds) if restrained else _POLL_SECONDS
            time.sleep(max(seconds, retry_delay(failures, _MAX_POLL_SECONDS) if failures else 0))


def _wait_until_idle(url: str) -> None:
    """Wait until the server has handled the calls that other clients abandoned."""
    quick = 0
    with urllib3.PoolManager() as connection:
        while quick < 5:
            began = time.monotonic()
            quick = quick + 1 if _poll(connection, url) and time.monotonic() - began < _QUICK_SECONDS else 0


def _poll(connection: urllib3.PoolManager, url: str) -> bool:
    """Return whether a poll succeeds. Like MLflow's client, it detects a closed connection."""
    try:
        response = connection.request("GET", url + CALLS["look"], timeout=TIMEOUT_SECONDS, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return response.status == 200


def count_calls(log: Path, since: int = 0) -> Counter[str]:
    """Count the calls of each kind in the server's log, after its first `since` bytes."""
    with log.open("rb") as lines:
        lines.seek(since)
        text = lines.read().decode(errors="replace")
    counts: Counter[str] = Counter()
    for path in re.findall(r'"\w+ (/\S+) HTTP', text):
        counts[_call_kind(path)] += 1
    return counts


def _call_kind(path: str) -> str:
    route = path.partition("?")[0]
    if route.endswith("/model-versions/search"):
        return "marker" if "order_by" in path else "look"
    kinds = {
        call: call_path.partition("?")[0]
        for call, call_path in CALLS.items()
        if call not in ("look", "marker")
    }
    named = next((call for call, known in kinds.items() if route == known), None)
    return named or ("artifacts" if "mlflow-artifacts" in route else os.path.basename(route))
