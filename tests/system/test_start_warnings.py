"""A service raises no warning, such as Python's about a fork in a process with threads."""

from __future__ import annotations

from pathlib import Path

from tests.support.registry import Registry
from tests.support.service import served


def test_start_and_prediction_raise_no_warning(registry: str, tmp_path: Path) -> None:
    versions = Registry(registry)
    versions.promote("quiet", versions.add("quiet", factor=2.0))
    with served(registry, tmp_path, models="models:/quiet/Production", _pythonwarnings="default") as service:
        service.until_ready()
        assert service.client.post("/predict", json={"x": 2}).json()["prediction"] == 4.0
        assert not [line for line in service.log if not line.startswith("{")]  # every line is a log line
