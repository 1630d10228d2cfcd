"""An MLflow server with other options than the one that most tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from tests.support.faulty_proxy import free_port
from tests.support.service import until

_MAX_START_SECONDS = 300
"""In a new environment without bytecode files, the import of MLflow takes minutes on a busy machine."""


@contextmanager
def mlflow_server(
    folder: Path, database: str, *options: str, program: str | Path = sys.executable, **variables: str
) -> Iterator[str]:
    """Run `mlflow server` on a database with these options and environment variables; yield its URL.

    `program` is an interpreter with another release of MLflow.
    """
    url = f"http://127.0.0.1:{free_port()}"
    command = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    log = folder / "server.log"
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | variables

    def responds() -> bool:
        assert server.poll() is None, log.read_text()
        with suppress(requests.ConnectionError):
            return requests.get(f"{url}/health", timeout=60).ok
        return False

    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(program), "-m", "mlflow", "server", *command, *options],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until(responds, max_seconds=_MAX_START_SECONDS)
            yield url
        finally:
            with suppress(ProcessLookupError):  # old releases do not pass the signal to their workers
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
