"""Processes that model code starts end with their version or the front, in real services."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.processes.descendants import StopDetector
from tests.support.process_ids import Watch, descendants, fork_server, parent
from tests.support.promotions import Model
from tests.support.registry import Registry
from tests.support.service import Service, environment, until


def drain(model: Model) -> None:
    """Replace the version."""
    model.until_live(model.promote())


def stop(model: Model) -> None:
    """Stop the service as a supervisor does."""
    model.service.process.send_signal(signal.SIGTERM)


def kill(model: Model) -> None:
    """Kill the front alone."""
    model.service.process.kill()


def kill_with_fork_server(model: Model) -> None:
    """Kill the front and the fork server at once."""
    front = model.service.process.pid
    for pid in (fork_server(front), front):
        os.kill(pid, signal.SIGKILL)


def kill_with_guardian(model: Model) -> None:
    """Kill the front and the guardian of the fork server at once."""
    front = model.service.process.pid
    for pid in (parent(fork_server(front)), front):
        os.kill(pid, signal.SIGKILL)


def kill_behind_stopped_fork_server(model: Model) -> None:
    """Kill the front of a fork server that is stopped."""
    front = model.service.process.pid
    os.kill(fork_server(front), signal.SIGSTOP)
    os.kill(front, signal.SIGKILL)


def kill_fork_server(model: Model) -> None:
    """Kill the fork server alone."""
    os.kill(fork_server(model.service.process.pid), signal.SIGKILL)


KINDS = ("setsid", "sibling", "exec")
ENDS = [
    stop,
    kill,
    kill_with_fork_server,
    kill_with_guardian,
    kill_behind_stopped_fork_server,
    kill_fork_server,
]


@pytest.mark.parametrize("end", ENDS)
def test_row_58_no_process_of_a_model_outlives_the_front(
    registry: str, tmp_path: Path, end: Callable[[Model], None]
) -> None:
    catalogue = Registry(registry)
    catalogue.promote("actor", catalogue.add("actor"))
    service = Service(environment(registry, tmp_path, models="models:/actor/Production"), tmp_path)
    try:
        service.until_ready()
        model = Model("actor", service, catalogue)
        notes = [tmp_path / kind for kind in (*KINDS, "immortal")]
        for kind, note in zip(KINDS, notes, strict=False):
            assert model.predict(1.0, f"outlast:{kind}:{note}").status_code == 200
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(lambda: model.predict(1.0, f"outlast:immortal:{notes[-1]}"))
            until(lambda: all(note.exists() and note.read_text() for note in notes))
            with Watch([int(note.read_text()) for note in notes]) as watch:
                end(model)
                assert not watch.left()
            hanging.exception()
    finally:
        service.process.kill()
        service.process.wait()
        service.stop()


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


def test_process_that_runs_between_looks_is_not_stopped() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:

        def has_state(state: str) -> bool:
            return f"State:\t{state}" in Path(f"/proc/{process.pid}/status").read_text()

        try:
            detector = StopDetector()
            for _ in range(6):
                process.send_signal(signal.SIGSTOP)
                until(lambda: has_state("T"))
                assert not detector.detects(process.pid)
                process.send_signal(signal.SIGCONT)
                until(lambda: has_state("S"))
            process.send_signal(signal.SIGSTOP)
            until(lambda: has_state("T"))
            assert [detector.detects(process.pid) for _ in range(3)] == [False, False, True]
        finally:
            process.kill()
