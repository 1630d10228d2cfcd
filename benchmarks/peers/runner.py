"""A system's turn: started, checked, driven, checked again and ended, with nothing of it left."""

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
"""The variable by which what was started for a turn is known."""

_APPS = Path(__file__).with_name("apps")
_TOLERANCE = 1e-6
_WARM_UP_SECONDS = 2
_KILL_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class System:
    """What takes turns: how it starts, giving its URL, what it is asked, and what it has to answer."""

    start: Callable[[Path], AbstractContextManager[str]]
    path: str
    body: Mapping[str, Any]
    read_probabilities: ProbabilityReader
    expected: Sequence[float]


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured, by number of connections; `fault` says what went wrong."""

    measured: Mapping[int, LoadResult]
    fault: str | None = None


class WrongPrediction(Exception):
    """Another answer than the bare model's; the message has both."""


class NotEnded(Exception):
    """Processes of a server that outlive even SIGKILL; the message has their ids."""


_FAULTS = (servers.NotStarted, NotEnded, WrongPrediction, httpx.HTTPError, subprocess.CalledProcessError)


def run(system: System, connections: Sequence[int], seconds: float) -> Run:
    """One system's turn. What goes wrong is told in the turn, so that the others get theirs.

    Raises:
        NoWrk: wrk is not installed.
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
    """Run a peer in its environment; gives its URL.

    Raises:
        NotStarted: it did not come up.
        NotEnded: something of it is left.
    """
    port, token = servers.free_port(), secrets.token_hex(16)
    paths = {"port": str(port), "model": str(model), "apps": str(_APPS), "folder": str(folder)}
    command = [word.format(python=python, **paths) for word in peer.command]
    env = {
        # What peers write into a home (tokens, caches, sockets) goes with the turn.
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
    """Whether an answer has the expected numbers, to 1e-6."""
    return len(probabilities) == len(expected) and all(
        abs(value - reference) <= _TOLERANCE for value, reference in zip(probabilities, expected, strict=True)
    )


def _drive(system: System, url: str, folder: Path, connections: int, seconds: float) -> LoadResult:
    # Batchers that learn, learn the load that they are measured with.
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
        raise WrongPrediction(f"{probabilities}, while the model says {system.expected}")


def kill_leftovers(token: str) -> None:
    """End the processes that were started with this token, whoever their parent is by now.

    MLflow's command leaves its server behind, and Ray's processes have groups of their own: what they do
    keep is their environment. Where there is no /proc, nothing is found.

    Raises:
        NotEnded: they do not.
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
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return results
