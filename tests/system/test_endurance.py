"""Five hundred promotions leak no resources, and the same check detects a deliberate leak."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.process_ids import Watch, descendants, fork_server
from tests.support.registry import Registry, save_scripted_model
from tests.support.service import PROGRAM, Service, environment, until

NAMES = ("lead", "foil", "extra", "double")
"""Models that are swapped at the same time."""
WARM_UP, SWAPS, SWAPS_OF_THE_LEAKY = 40, 500, 64
MAX_GROWTH_MB = 6.0
LEAKY = """
import os
from serving.cli.main import main
from serving.models.slot import Slot

swap, kept = Slot.swap, []

def leak(self, new, seconds):
    kept.append((bytearray(os.urandom(2**19)), open(os.devnull)))
    return swap(self, new, seconds)

Slot.swap = leak
main()
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Resources of a service: memory of front and fork server in MB, open files, processes, threads."""

    front: float
    fork_server: float
    files: int
    processes: int
    threads: int

    @classmethod
    def of(cls, service: Service) -> Size:
        front = service.process.pid
        until(lambda: len(descendants(front)) == 2 + len(NAMES))  # wait until the previous version has gone
        server = fork_server(front)
        files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (front, server))
        threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in (front, server))
        return cls(_resident(front), _resident(server), files, len(descendants(front)), threads)

    def has_grown_since(self, before: Size) -> bool:
        *memory, files, processes, threads = (
            now - then for now, then in zip(astuple(self), astuple(before), strict=True)
        )
        return max(memory) > MAX_GROWTH_MB or files > 5 or processes > 0 or threads > 2


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def swapping(uri: str, folder: Path, program: list[Any]) -> Iterator[Service]:
    """Serve models with two versions each, without a warm previous version."""
    registry = Registry(uri)
    folder_of_all = save_scripted_model(registry.folder, example=None)
    for name in NAMES:
        for _ in range(2):
            registry.register(name, folder_of_all)
        registry.alias(name, "best", "1")
    models = ",".join(f"models:/{name}@best" for name in NAMES)
    settings = {"models": models, "probation_seconds": 0, "poll_seconds": 0.3}
    service = Service(environment(uri, folder, **settings), folder, program)
    try:
        service.until_ready()
        yield service
    finally:
        service.process.kill()
        service.stop()


def swap(service: Service, registry: Registry, times: int) -> None:
    for number in range(times // len(NAMES)):
        version = str(2 - number % 2)
        for name in NAMES:
            registry.alias(name, "best", version)
        for name in NAMES:
            service.until_live(name, version)
            answer = service.client.post(f"/models/{name}/predict", json={"x": 2}).json()
            assert (answer["prediction"], answer["model"]["version"]) == (2.0, version)


@pytest.mark.timeout(900)  # five hundred loads beside other tests
def test_row_11_five_hundred_swaps_leak_nothing(registry: str, tmp_path: Path) -> None:
    with swapping(registry, tmp_path, [PROGRAM]) as service:
        swap(service, Registry(registry), WARM_UP)
        before = Size.of(service)
        swap(service, Registry(registry), SWAPS - WARM_UP)
        after = Size.of(service)
    assert not after.has_grown_since(before), (before, after)


def test_row_11_deliberate_leak_is_detected(registry: str, tmp_path: Path) -> None:
    with swapping(registry, tmp_path, [sys.executable, "-c", LEAKY]) as service:
        swap(service, Registry(registry), WARM_UP)
        before = Size.of(service)
        swap(service, Registry(registry), SWAPS_OF_THE_LEAKY - WARM_UP)
        after = Size.of(service)
    for leaked in (replace(before, front=after.front), replace(before, files=after.files)):
        assert leaked.has_grown_since(before), (before, after)  # each leak alone is detected


def test_row_24_killed_front_leaves_no_process(registry: str, tmp_path: Path) -> None:
    with swapping(registry, tmp_path, [PROGRAM]) as service:
        left = descendants(service.process.pid)
        assert len(left) == 2 + len(NAMES)  # the guardian and the fork server
        with Watch(left) as watch:
            service.process.kill()
            assert not watch.left()
