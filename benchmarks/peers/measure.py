"""Measurement of every system in turn, round by round."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import servers
from benchmarks.peers.catalog import PEERS, Peer
from benchmarks.peers.environments import NotInstalled, environment, merge_requirements, versions
from benchmarks.peers.results import CONNECTIONS, CONSTANT, OURS, Entry, Results
from benchmarks.peers.runner import Run, System, run, serve
from benchmarks.promotion import registry_client
from benchmarks.throughput import ROW, make_registry

Progress = Callable[[str], object]
_Entrant = tuple[Entry, System | None]


@dataclass(frozen=True, slots=True)
class _Model:
    """The logged model: its registry, folder and requirements, and its probabilities for the row."""

    registry: str
    folder: Path
    requirements: tuple[str, ...]
    expected: tuple[float, ...]


def measure(folder: Path, environments: Path, rounds: int, seconds: float, progress: Progress) -> Results:
    """Install all peers, then run every system once per round; report progress through `progress`.

    Raises:
        WrkNotInstalled: wrk is not installed.
    """
    progress("training the model")
    registry = make_registry(folder)
    model = _model(registry, folder)
    entries = [
        _ours(model),
        *(_installed_peer(peer, model, environments, progress) for peer in PEERS),
        _constant(),
    ]
    runs: dict[str, list[Run]] = {entry.name: [] for entry, _ in entries}
    for number in range(1, rounds + 1):
        for entry, system in entries:
            if system:
                progress(f"round {number} of {rounds}: {entry.name}")
                runs[entry.name].append(run(system, CONNECTIONS, seconds))
    return Results(
        date=datetime.now(UTC).date().isoformat(),
        machine=_machine(),
        python=platform.python_version(),
        rounds=rounds,
        seconds=seconds,
        model=model.requirements,
        entries=tuple(replace(entry, runs=tuple(runs[entry.name])) for entry, _ in entries),
    )


def _model(registry: str, folder: Path) -> _Model:
    registry_client(registry)
    import mlflow
    import pandas as pd

    place = mlflow.artifacts.download_artifacts("models:/iris/1", dst_path=str(folder / "model"))
    (expected,) = mlflow.pyfunc.load_model(place).predict(pd.DataFrame([ROW])).tolist()
    requirements = (Path(place) / "requirements.txt").read_text().splitlines()
    return _Model(registry, Path(place), tuple(requirements), tuple(expected))


def _ours(model: _Model) -> _Entrant:
    system = System(
        start=partial(servers.serving, model.registry),
        path="/predict",
        body=ROW,
        read_probabilities=lambda response: [*response["probabilities"].values()],
        expected=model.expected,
    )
    setting = "as users get it: one front, one model process, no cache"
    return Entry(OURS, version("mlflow-serving-front"), setting), system


def _constant() -> _Entrant:
    system = System(
        start=servers.constant,
        path="/predict",
        body=ROW,
        read_probabilities=lambda response: [response["prediction"]],
        expected=(0,),
    )
    return Entry(CONSTANT, version("fastapi"), "uvicorn; no model, the same types"), system


def _installed_peer(peer: Peer, model: _Model, environments: Path, progress: Progress) -> _Entrant:
    pinned = peer.requirements[0].partition("==")[2]
    entry = Entry(peer.name, pinned, peer.setting)
    progress(f"installing {peer.name} {pinned}")
    try:
        python = environment(
            environments, peer.name, merge_requirements(model.requirements, peer.requirements)
        )
    except NotInstalled as error:
        return replace(entry, not_installed=str(error)), None
    system = System(
        start=partial(serve, peer, python, model.folder),
        path=peer.path,
        body=peer.body,
        read_probabilities=peer.read_probabilities,
        expected=model.expected,
    )
    return replace(entry, installed=versions(python)), system


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB of memory, {platform.system()} {platform.machine()}"
