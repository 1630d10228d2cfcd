"""One run of a system: start, check, measure, check again, and end it with all its processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks import servers
from benchmarks.peers.catalog import Peer, ProbabilityReader
from benchmarks.wrk import LoadResult, drive

TOKEN = "PEER_TURN"
"""Environment variable that marks the processes of a run."""

_APPS = Path(__file__).with_name("apps")
_TOLERANCE = 1e-6
_WARM_UP_SECONDS = 2
_KILL_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class System:
    """A system to measure: how it starts (yielding its URL), its request, and the expected probabilities."""

    start: Callable[[Path], AbstractContextManager[str]]
    path: str
    body: Mapping[str, Any]
    read_probabilities: ProbabilityReader
    expected: Sequence[float]


@dataclass(frozen=True, slots=True)
class Run:
    """Measurements by number of connections; `fault` describes an error."""

    measured: Mapping[int, LoadResult]
    fault: str | None = None


class WrongPrediction(Exception):
    """Raised when probabilities differ from the bare model's; the message has both."""


class NotEnded(Exception):
    """Raised when processes of a server survive SIGKILL; the message has their ids."""


_FAULTS = (servers.NotStarted, NotEnded, WrongPrediction, httpx.HTTPError, subprocess.CalledProcessError)


def run(system: System, connections: Sequence[int], seconds: float) -> Run:
    """Run one system. An error ends this run only and becomes its `fault`.

    Raises:
        WrkNotInstalled: wrk is not installed.
    """
    measured: dict[int, LoadResult] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with system.start(folder) as url:
                _check(system, url)
                for count in connections:
                    measured[count] = _drive(system, url, folder, count, seconds)
                _check(system, url)
        except _FAULTS as error:
            return Run(measured, f"{type(error).__name__}: {error}")
    return Run(measured)


@contextmanager
def serve(peer: Peer, python: Path, model: Path, folder: Path) -> Iterator[str]:
    """Run a peer in its environment; yield its URL.

    Raises:
        NotStarted: The server does not start.
        NotEnded: Some of its processes do not end.
    """
    port, token = servers.free_port(), secrets.token_hex(16)
    paths = {"port": str(port), "model": str(model), "apps": str(_APPS), "folder": str(folder)}
    command = [word.format(python=python, **paths) for word in peer.command]
    env = {
        # Files that peers write to the home folder (tokens, caches, sockets) are deleted after the run.
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": "",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PEER_PORT_2": str(servers.free_port()),
        **{f"PEER_{name.upper()}": place for name, place in paths.items()},
        TOKEN: token,
        **peer.env,
    }
    url = f"http://127.0.0.1:{port}"
    try:
        with servers.running(command, f"{url}{peer.ready}", folder / "server.log", env):
            yield url
    finally:
        kill_leftovers(token)


def is_close(probabilities: Sequence[float], expected: Sequence[float]) -> bool:
    """Return whether probabilities equal the expected ones to within 1e-6."""
    return len(probabilities) == len(expected) and all(
        abs(value - reference) <= _TOLERANCE for value, reference in zip(probabilities, expected, strict=True)
    )


def _drive(system: System, url: str, folder: Path, connections: int, seconds: float) -> LoadResult:
    # Adaptive batchers adapt to the load during the warm-up.
    drive(url + system.path, system.body, folder, connections=connections, seconds=_WARM_UP_SECONDS)
    return drive(url + system.path, system.body, folder, connections=connections, seconds=seconds)


def _check(system: System, url: str) -> None:
    response = httpx.post(url + system.path, json=system.body, timeout=30)
    try:
        probabilities = [
            float(value) for value in system.read_probabilities(response.raise_for_status().json())
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise WrongPrediction(f"{response.text[:200]} can't be read: {error!r}") from None
    if not is_close(probabilities, system.expected):
        raise WrongPrediction(f"{probabilities}; the bare model returns {system.expected}")


def kill_leftovers(token: str) -> None:
    """End the processes with this token, even if they have another parent by now.

    MLflow's command does not end its server, and Ray's processes have their own process groups, but all of
    them keep their environment. Without /proc this does nothing.

    Raises:
        NotEnded: Some processes do not end.
    """
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for process in _started_with(token):
            with suppress(ProcessLookupError):
                os.kill(process, sent)
        end = time.monotonic() + _KILL_TIMEOUT_SECONDS
        while _started_with(token) and time.monotonic() < end:
            time.sleep(0.1)
    if left := _started_with(token):
        raise NotEnded(f"these processes do not end: {left}")


def _started_with(token: str) -> list[int]:
    wanted, results = f"{TOKEN}={token}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environ.read_bytes():
                results.append(int(environ.parent.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return results
