"""Run a real Prometheus that scrapes the targets of a test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.faulty_proxy import free_port


@contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[httpx.Client]:
    """Run Prometheus with this configuration, scraping every second; yield a client of its API."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    port, file = free_port(), folder / "prometheus.yaml"
    often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    file.write_text(yaml.safe_dump(config | {"global": often}))
    command = ["prometheus", f"--config.file={file}", "--log.level=error"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (
        subprocess.Popen(command) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60) as client,
    ):
        try:
            yield client
        finally:
            process.terminate()


def found(client: httpx.Client, expr: str) -> list[Any]:
    """Return the result of a Prometheus query; empty during start-up."""
    try:
        answer = client.get("/query", params={"query": expr})
    except httpx.ConnectError:
        return []
    assert answer.status_code in (200, 503), answer.text
    results: list[Any] = answer.json()["data"]["result"] if answer.is_success else []
    return results
