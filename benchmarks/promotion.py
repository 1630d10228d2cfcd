"""Time from a promotion to the first prediction of the new version, and the effect of the swap on clients."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from rich.console import Console

from benchmarks import report, servers
from benchmarks.throughput import ROW, make_registry
from benchmarks.wrk import LoadResult, drive

_CONNECTIONS = 8
_QUIET_SECONDS = 5.0
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Promotions:
    """Seconds from each promotion in the registry to the first prediction of its version.

    `quiet` and `swapping` are the clients' measurements before and during the promotions.
    """

    by: str
    seconds: tuple[float, ...]
    quiet: LoadResult
    swapping: LoadResult

    @property
    def p99_ratio(self) -> float:
        """Return the ratio of the clients' p99 during the swaps to the p99 before them."""
        return self.swapping.p99 / self.quiet.p99


def by_polling(folder: Path, promotions: int) -> Promotions:
    """Promote to a stage of a SQLite registry, which the service polls every second."""
    registry = make_registry(folder)
    client = registry_client(registry)
    with servers.serving(registry, folder) as url:
        versions = more_versions(client, "iris", promotions)

        def promote(version: str) -> None:
            client.transition_model_version_stage("iris", version, "Production", True)

        return _measure("polling every second", url, folder, versions, promote)


def by_webhook(folder: Path, promotions: int) -> Promotions:
    """Move an alias on an MLflow server that sends webhooks; the service practically does not poll."""
    secret = secrets.token_hex(16)
    with mlflow_server(folder) as registry:
        make_registry(folder, registry)
        client = registry_client(registry)
        versions = more_versions(client, "iris", promotions)
        client.set_registered_model_alias("iris", "champion", "1")
        env = {
            "SERVING_MODELS": "models:/iris@champion",
            "SERVING_POLL_SECONDS": "3600",
            "SERVING_WEBHOOK_SECRET": secret,
        }
        with servers.serving(registry, folder, env=env) as url:
            command = [sys.executable, "-m", "serving", "webhook", url]
            variables = {**os.environ, **env, "MLFLOW_TRACKING_URI": registry}
            subprocess.run(command, env=variables, check=True, capture_output=True)

            def promote(version: str) -> None:
                client.set_registered_model_alias("iris", "champion", version)

            return _measure("webhook", url, folder, versions, promote)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run an MLflow server that serves artifacts and may send webhooks to this machine; yield its URI."""
    from cryptography.fernet import Fernet

    port = servers.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # the default hides a new webhook for a minute
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    with servers.running(command, f"http://127.0.0.1:{port}/health", folder / "mlflow.log", env) as url:
        yield url


def show(results: Sequence[Promotions], out: Console) -> None:
    """Print the results."""
    report.show([_table(results)], out)


def markdown(results: Sequence[Promotions]) -> str:
    """Return the section of `RESULTS.md`."""
    return report.markdown("Promotions: `python -m benchmarks promotion`", [_table(results)])


def _table(results: Sequence[Promotions]) -> report.ReportTable:
    rows = [
        (
            result.by,
            str(len(result.seconds)),
            report.range_of(result.seconds),
            f"{result.quiet.p99:.1f}",
            f"{result.swapping.p99:.1f}",
            f"{result.p99_ratio:.2f}",
            str(result.quiet.failed + result.swapping.failed),
        )
        for result in results
    ]
    columns = (
        "followed by",
        "promotions",
        "seconds: min / median / max",
        "p99 before, ms",
        "p99 during swaps, ms",
        "ratio",
        "failed",
    )
    note = (
        "From the registry's response to the first prediction of the new version, while wrk sends requests "
        f"over {_CONNECTIONS} connections without a pause. Promotions follow each other directly."
    )
    return report.ReportTable("Promotions under load", columns, tuple(rows), (note,))


def _measure(
    by: str, url: str, folder: Path, versions: Sequence[str], promote: Callable[[str], None]
) -> Promotions:
    predict = f"{url}/predict"
    drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=1)
    quiet = drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=_QUIET_SECONDS)
    results: list[LoadResult] = []
    # The load should last as long as the promotions: they take about a second each.
    load = Thread(
        target=lambda: results.append(
            drive(predict, ROW, folder, connections=_CONNECTIONS, seconds=1.3 * len(versions))
        )
    )
    load.start()
    seconds = tuple(seconds_to_live(predict, version, promote) for version in versions)
    load.join()
    return Promotions(by, seconds, quiet, results[0])


def seconds_to_live(url: str, version: str, promote: Callable[[str], None]) -> float:
    """Return the seconds from the end of `promote` to the first prediction of this version at `url`.

    Raises:
        NotStarted: The version did not go live.
    """
    promote(version)
    began = time.perf_counter()
    with httpx.Client() as client:
        while client.post(url, json=ROW).raise_for_status().headers["x-model-version"] != version:
            if time.perf_counter() - began > _TIMEOUT_SECONDS:
                raise servers.NotStarted(f"version {version} did not go live")
            time.sleep(0.005)
    return time.perf_counter() - began


def registry_client(registry: str) -> Any:
    """Return an MLflow client, and make this registry MLflow's default in this process."""
    import logging
    import warnings

    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)

    warnings.filterwarnings("ignore", category=FutureWarning)  # MLflow has deprecated stages
    mlflow.set_tracking_uri(registry)
    return mlflow.MlflowClient()


def more_versions(client: Any, name: str, count: int) -> list[str]:
    """Register further versions of version 1's artifacts; the service loads and verifies each separately."""
    first = client.get_model_version(name, "1")
    model_id = first.source.removeprefix("models:/")
    return [
        str(client.create_model_version(name, first.source, first.run_id, model_id=model_id).version)
        for _ in range(count)
    ]
