"""Nothing that model code starts outlives its version or the front, in real services."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from casting import Registry
from live import Service, environment
from pids import Watch, descendants
from promotions import Model


def drain(model: Model) -> None:
    """Replace the version."""
    model.until_live(model.promote())


def stop(model: Model) -> None:
    """Stop the service as a supervisor does."""
    model.service.process.send_signal(signal.SIGTERM)


def kill(model: Model) -> None:
    """Kill the front alone."""
    model.service.process.kill()


@pytest.mark.parametrize("end", [drain, stop, kill])
def test_daemons_of_models_end(registry: str, tmp_path: Path, end: Callable[[Model], None]) -> None:
    catalogue = Registry(registry)
    note = tmp_path / "daemon"
    catalogue.promote("actor", catalogue.add("actor"))
    settings = {"models": "models:/actor/Production", "probation_seconds": 0}
    service = Service(environment(registry, tmp_path, **settings), tmp_path)
    try:
        service.until_ready()
        model = Model("actor", service, catalogue)
        assert model.predict(1.0, f"daemon:{note} pool:fork").status_code == 200
        pid = int(note.read_text())
        assert pid in descendants(service.process.pid)
        with Watch([pid]) as watch:
            end(model)
            assert not watch.left()
    finally:
        service.process.kill()
        service.process.wait()
        service.stop()
