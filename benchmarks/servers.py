"""Server processes for measurements: start them on free ports, wait for them, and end them in any case."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

_START_TIMEOUT_SECONDS = 120


class NotStarted(Exception):
    """Raised when a server does not start; the message includes the end of its log."""


def free_port() -> int:
    """Return a port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@contextmanager
def running(command: list[str], url: str, log: Path, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server until the block ends; yield its URL once `url` returns 200.

    Raises:
        NotStarted: The server ended, or did not return 200 in time.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        try:
            _wait(process, url, log)
            yield url.rsplit("/", 1)[0]
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def serving(
    registry: str, folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run this service with its default settings; yield its URL once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "serving", "run", "--port", str(port), *options]
    variables = {
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SERVING_STORE_DIR": str(folder / "store"),
        **(env or {}),
    }
    with running(command, f"http://127.0.0.1:{port}/ready", folder / "serving.log", variables) as url:
        yield url


@contextmanager
def constant(folder: Path) -> Iterator[str]:
    """Run the endpoint that returns a constant; yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.constant_app:create_app", "--factory"]
    command += ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    with running(command, f"http://127.0.0.1:{port}/docs", folder / "constant.log") as url:
        yield url


@contextmanager
def mlflow_scoring(registry: str, model: str, folder: Path) -> Iterator[str]:
    """Run MLflow's own server for one model, as MLflow documents it; yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", model, "--host", "127.0.0.1", "--port", str(port)]
    variables = {
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow starts uvicorn by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with running(command, f"http://127.0.0.1:{port}/ping", folder / "scoring.log", variables) as url:
        yield url


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise NotStarted(f"{url} did not return 200; its log ends with: {log.read_text()[-2000:]}")
