"""Faults of processes, and what keeps the service running while it recovers from them."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.process_ids import children, fork_server, parent
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, served, until

FRONT = """
import signal
from pathlib import Path
from serving.supervision import Supervisor
from serving.cli.main import main

start, supervisors = Supervisor.start, []

def remember(self, *arguments, **options):
    supervisors.append(self)
    return start(self, *arguments, **options)

def cancel(*_):
    name = Path("cancelled").read_text()
    for component in list(supervisors[0].components):
        if component.name == name:
            component._loop.call_soon_threadsafe(component._task.cancel)

Supervisor.start = remember
signal.signal(signal.SIGRTMIN, cancel)
main()
"""
"""A front that cancels the components whose name is in the file `cancelled` on SIGRTMIN."""

PRELOADED = """
import ctypes, errno, os, signal, subprocess, sys, threading, time
from pathlib import Path

home, control, forks = Path(__file__).parent, int(sys.argv[1]), os.fork
messages = (
    b"", b"garbage", b"[" * 60000, b'"text"', b"[1]", b"{}", b'{"ended": "x"}', b'{"ended": 1, "status": 0}',
    b'{"forked": 1, "number": 99}', b'{"pong": 10000000, "pid": 1}', b"\\xff\\xfe", b"1" * 5000,
)

def fork():
    fault = home / "no-fork"
    if fault.exists():
        fault.unlink()
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    return forks()

def watch():
    while True:
        if (helper := home / "helper").exists():
            subprocess.run(["true"])
            helper.unlink()
        if (sibling := home / "sibling").exists():
            number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
            if ctypes.PyDLL(None).syscall(number, 0x8000 | 17, 0, 0, 0, 0) == 0:  # CLONE_PARENT
                os._exit(0)
            sibling.unlink()
        if (garbage := home / "garbage").exists():
            os.write(control, b"\\n".join(messages) + b"\\nunfinished")
            garbage.unlink()
        time.sleep(0.02)

os.fork = fork
threading.Thread(target=watch, daemon=True).start()
"""
"""A module in the fork server that does what the files beside it ask for."""


class Stand:
    """A service of two models, and the folder of the files that cause its faults."""

    def __init__(self, service: Service, registry: Registry, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.actor, self.other = Model("actor", service, registry), Model("other", service, registry)

    @property
    def front(self) -> int:
        return self.service.process.pid

    @property
    def fork_server(self) -> int:
        return fork_server(self.front)

    def cause(self, fault: str) -> None:
        """Cause a fault in the fork server, and wait for it."""
        (self.folder / fault).touch()
        until(lambda: not (self.folder / fault).exists())

    def process(self) -> int:
        """Return the process of the first model."""
        note = self.folder / "pid"
        assert self.actor.predict(1.0, f"note:{note}").status_code == 200
        return int(note.read_text())

    def kill_process(self) -> None:
        os.kill(self.process(), signal.SIGKILL)

    def restarts(self, component: str) -> float:
        return self.service.metrics()[f'serving_component_restarts_total{{component="{component}"}}']

    def recovers(self) -> None:
        """Kill a process of a model, and wait until the service has recovered."""
        self.kill_process()
        until(self.is_well)

    def is_well(self) -> bool:
        with suppress(AssertionError):  # a request that was lost with its process may time out
            is_ready = self.service.client.get("/ready").status_code == 200
            return is_ready and all(model.is_well("1") for model in (self.actor, self.other))
        return False


@pytest.fixture(scope="module")
def stand(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("processes")
    registry = Registry(new_registry(folder))
    for name in ("actor", "other"):
        registry.promote(name, registry.add(name))
    (folder / "front.py").write_text(FRONT)
    (folder / "preloaded.py").write_text(PRELOADED)
    settings: dict[str, Any] = {
        "models": "models:/actor/Production,models:/other/Production",
        "preload": "preloaded",
    }
    paths = {"_pythonpath": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    program = (sys.executable, folder / "front.py")
    settings |= {
        "probation_seconds": 0,
        "deadline_seconds": 4,
        "journal_url": f"sqlite:///{folder}/journal.db",
    }
    with served(registry.uri, folder, program, **settings, **paths) as service:
        service.until_ready()
        yield Stand(service, registry, folder)


@pytest.fixture(autouse=True)
def all_is_well(stand: Stand) -> Iterator[None]:
    """Check after each test that the service is alive and ready and predicts correctly."""
    yield
    until(stand.is_well)


# -- notifications


@pytest.mark.parametrize("fault", ["helper", "sibling"])
def test_row_44_end_of_a_foreign_child_is_ignored(stand: Stand, fault: str) -> None:
    before = stand.fork_server
    stand.cause(fault)
    stand.recovers()
    assert stand.fork_server == before


@pytest.mark.parametrize("kind", ["sibling", "brief"])
def test_row_44_child_cloned_by_a_model_is_ignored(stand: Stand, kind: str) -> None:
    before, note = stand.fork_server, stand.folder / f"{kind}.pid"
    assert stand.actor.predict(1.0, f"outlast:{kind}:{note}").status_code == 200
    until(note.exists)
    stand.recovers()
    assert stand.fork_server == before


def test_row_44_messages_that_cannot_be_read_are_ignored(stand: Stand) -> None:
    before = stand.fork_server
    stand.cause("garbage")
    stand.recovers()
    stand.recovers()
    assert stand.fork_server == before


@pytest.mark.parametrize(
    "component",
    [
        "launcher",
        "watchdog",
        "process keeper",
        "follower",
        "traffic history",
        "event loop monitor",
        "journal writer",
    ],
)
def test_row_44_component_that_ends_is_restarted_and_reported(stand: Stand, component: str) -> None:
    before = stand.restarts(component)
    (stand.folder / "cancelled").write_text(component)
    os.kill(stand.front, signal.SIGRTMIN)
    until(lambda: stand.restarts(component) > before)
    assert component in {each["name"] for each in stand.service.ready()["components"]}
    until(lambda: stand.service.metrics()[f'serving_component_up{{component="{component}"}}'] == 1)
    stand.recovers()
    if component == "follower":
        version = stand.other.promote(factor=1.0)
        stand.other.until_live(version)
        stand.other.promote("1")
        stand.other.until_live("1")


# -- resources


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no more files while the block runs."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    lowest = min(set(range(1024)) - {int(each) for each in os.listdir(f"/proc/{pid}/fd")})
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_row_45_service_without_processes_is_not_ready(stand: Stand) -> None:
    process = stand.process()
    with without_descriptors(stand.front):
        os.kill(process, signal.SIGKILL)
        until(lambda: stand.service.client.get("/ready").status_code == 503)
        assert stand.actor.state["state"] == "recovering"
        assert stand.other.is_well("1")
        assert stand.service.client.get("/v2/health/ready").status_code == 503
        assert stand.service.client.get("/ping").status_code == 503


def test_row_45_fork_server_without_descriptors_recovers(stand: Stand) -> None:
    process, before = stand.process(), stand.fork_server
    with without_descriptors(before):
        os.kill(process, signal.SIGKILL)
        until(lambda: stand.service.client.get("/ready").status_code == 503)
    until(stand.is_well)
    assert stand.fork_server == before


def test_row_45_fork_server_restarts_when_descriptors_are_available(stand: Stand) -> None:
    before = stand.fork_server
    with without_descriptors(stand.front):
        os.kill(before, signal.SIGKILL)
        until(lambda: stand.service.client.get("/ready").status_code == 503)
    until(lambda: stand.fork_server not in (0, before))


def test_row_45_version_promoted_without_descriptors_goes_live_later(stand: Stand) -> None:
    version = stand.other.add(factor=1.0)
    with without_descriptors(stand.front):
        stand.other.promote(version)
        stand.other.until(
            lambda state: state["candidate"] or not stand.service.ready()["registry"]["reachable"]
        )
    stand.other.until_live(version)
    stand.other.promote("1")
    stand.other.until_live("1")


def test_row_58_failing_fork_delays_only_one_process(stand: Stand) -> None:
    process, before = stand.process(), stand.fork_server
    (stand.folder / "no-fork").touch()
    os.kill(process, signal.SIGKILL)
    until(lambda: not (stand.folder / "no-fork").exists())
    assert stand.other.is_well("1")
    until(stand.is_well)
    assert stand.fork_server == before


def test_model_out_of_memory_fails_only_its_request(stand: Stand) -> None:
    assert stand.actor.predict(1.0, "limit:1 grow:64").status_code == 500
    assert stand.other.is_well("1")
    stand.recovers()


def test_fork_server_killed_for_memory_is_replaced(stand: Stand) -> None:
    before = stand.fork_server
    os.kill(before, signal.SIGKILL)
    until(lambda: stand.fork_server not in (0, before))
    until(stand.is_well)


# -- processes that hang


def guardian(stand: Stand) -> int:
    return parent(stand.fork_server)


def both(stand: Stand) -> list[int]:
    return [stand.fork_server, guardian(stand)]


@pytest.mark.parametrize(
    "stopped",
    [lambda stand: [stand.fork_server], lambda stand: [guardian(stand)], both],
    ids=["it", "parent", "both"],
)
def test_row_58_stopped_fork_server_is_replaced(stand: Stand, stopped: Callable[[Stand], list[int]]) -> None:
    before = stand.fork_server
    for pid in stopped(stand):
        os.kill(pid, signal.SIGSTOP)
    until(lambda: stand.fork_server not in (0, before))
    until(stand.is_well)


def test_row_58_stopped_model_process_is_replaced(stand: Stand) -> None:
    process = stand.process()
    os.kill(process, signal.SIGSTOP)
    until(lambda: process not in children(stand.fork_server))
    until(stand.is_well)


def test_row_58_process_stopped_while_loading_is_replaced(stand: Stand) -> None:
    version = stand.other.promote(factor=1.0, on_load=f"stop_once:{stand.folder / 'stopped'}", example=None)
    stand.other.until_live(version)
    stand.other.promote("1")
    stand.other.until_live("1")


# -- frames


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "frames",
    [
        "3:1073741824:1",
        "6:1073741824:1",
        "1:4294967295:1",
        "4:16777216:100",
        "3:1000:1000000",
        "9:0:1000000",
        "200:5:1",
    ],
)
def test_row_58_frames_of_a_model_process_are_bounded(stand: Stand, frames: str) -> None:
    process, before = stand.process(), resident(stand.front)
    assert stand.actor.predict(1.0, f"frames:{frames}").status_code == 500
    assert resident(stand.front) - before < 100 * 2**20
    until(lambda: process not in children(stand.fork_server))
    until(stand.is_well)


# -- few descriptors


def test_row_45_few_descriptors_and_many_connections(new_registry: NewRegistry, tmp_path: Path) -> None:
    registry = Registry(new_registry(tmp_path))
    registry.promote("actor", registry.add("actor"))
    program = ("sh", "-c", 'ulimit -n 128; exec "$0" "$@"', Path(sys.executable).with_name("serving"))
    with (
        served(registry.uri, tmp_path, program, models="models:/actor/Production") as service,
        ExitStack() as stack,
    ):
        service.until_ready()
        model = Model("actor", service, registry)
        note = tmp_path / "pid"
        assert model.predict(1.0, f"note:{note}").status_code == 200
        for _ in range(400):
            with suppress(OSError):
                stack.enter_context(socket.create_connection(service.address, timeout=5))
        os.kill(int(note.read_text()), signal.SIGKILL)
        until(lambda: not Path(f"/proc/{note.read_text()}").exists())
        stack.close()
        until(lambda: service.client.get("/ready").status_code == 200 and model.is_well("1"))
