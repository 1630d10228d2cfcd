"""Models of many kinds return through every protocol what MLflow returns, alone and beside other requests."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from casting import Registry, quiet
from conftest import NewRegistry
from live import FOR_SKLEARN, SELDOM, Service, served, until
from model_zoo import ENTRY_MODULES
from model_zoo.comparison import difference
from model_zoo.entries import Entry, entries
from model_zoo.protocols import PROTOCOLS, Protocols, Send
from pids import children, descendants

from serving.rpc.messages import services

# The first test waits until all models are saved, and live.
pytestmark = pytest.mark.timeout(400)

TESTS = Path(__file__).parent
with quiet():
    ENTRIES: dict[str, Entry] = {
        name: entry for module in ENTRY_MODULES for name, entry in entries(module).items()
    }
CONCURRENT_REQUESTS = 24


@dataclass(frozen=True, slots=True)
class Zoo:
    """The service of all models, its clients, and what MLflow returns."""

    service: Service
    protocols: Protocols
    references: dict[str, Any]

    def is_live(self, name: str) -> bool:
        """Return whether a model is served."""
        return bool(self.service.client.get(f"/models/{name}").json().get("state") == "live")

    def calls(self, name: str, protocol: str) -> Iterator[tuple[int, int, Send]]:
        """Return what a protocol can send to a model: the request's and the row's index, and the call."""
        for number, request in enumerate(ENTRIES[name].requests):
            for row, send in enumerate(self.protocols.sends(name, request, protocol)):
                yield number, row, send


def made(home: Path, *modules: str, python: str = sys.executable) -> subprocess.Popen[bytes]:
    """Begin to save the models of these modules, and what MLflow returns for their requests."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [python, "-W", "ignore", "-m", "model_zoo.reference", str(home), *modules]
    return subprocess.Popen(command, env=environment, cwd=home)


@pytest.fixture(scope="module")
def zoo(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """A service of every model that the test environment can run."""
    home, folders = tmp_path_factory.mktemp("model-zoo"), tmp_path_factory.mktemp("models")
    # Two at a time, of about the same length.
    with made(folders, *ENTRY_MODULES[:3]) as some, made(folders, *ENTRY_MODULES[3:]) as others:
        pass
    assert (some.returncode, others.returncode) == (0, 0)
    references = {name: json.loads((folders / f"{name}.json").read_text()) for name in ENTRIES}
    registry = Registry(new_registry(home))
    for name in ENTRIES:
        registry.register(name, folders / name)
    settings = {"models": ",".join(f"models:/{name}/1" for name in ENTRIES), "preload": FOR_SKLEARN}
    with served(
        registry.uri, home, grpc_port=0, poll_seconds=SELDOM, load_seconds=120, **settings
    ) as service:
        for name in ENTRIES:
            until(lambda name=name: _is_settled(service, name))
        address = service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]
        with grpc.insecure_channel(address) as channel:
            yield Zoo(
                service, Protocols(service.client, services.GRPCInferenceServiceStub(channel)), references
            )


def _is_settled(service: Service, name: str) -> bool:
    """Return whether a model is live or will not be."""
    found = service.client.get(f"/models/{name}").json()
    return found["state"] == "live" or (found["candidate"] or {}).get("state") in ("rejected", "waiting")


@contextmanager
def held(service: Service) -> Iterator[None]:
    """Stop all model processes, so that requests wait for them together."""
    pids = descendants(service.process.pid) - children(service.process.pid)
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # one that was only tried
            os.kill(pid, number)


@pytest.mark.parametrize("name", ENTRIES)
def test_model_goes_live(zoo: Zoo, name: str) -> None:
    found = zoo.service.client.get(f"/models/{name}").json()
    assert found["state"] == "live", (found["reason"], found["candidate"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ENTRIES)
def test_answer_is_the_models_own(zoo: Zoo, name: str, protocol: str) -> None:
    if not zoo.is_live(name) or (protocol == "stream" and not ENTRIES[name].streams):
        return
    differences = []
    for number, row, send in zoo.calls(name, protocol):
        request, reference = ENTRIES[name].requests[number], zoo.references[name][number]
        if found := difference(ENTRIES[name], request, reference, protocol, row, send(), exact=True):
            differences.append(f"request {number}, row {row}: {found}")
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("name", ENTRIES)
def test_concurrent_requests_do_not_change_an_answer(zoo: Zoo, name: str) -> None:
    if not zoo.is_live(name):
        return
    entry = ENTRIES[name]
    protocols = [each for each in PROTOCOLS if entry.streams or each != "stream"]
    calls = [(protocol, *call) for protocol in protocols for call in zoo.calls(name, protocol)]
    random.Random(name).shuffle(calls)
    calls = [*islice(cycle(calls), max(CONCURRENT_REQUESTS, len(calls)))]
    waiting = f'serving_waiting_requests{{model="{name}",version="1"}}'
    with ThreadPoolExecutor(len(calls)) as pool:
        with held(zoo.service):
            replies = [pool.submit(send) for *_, send in calls]
            # Each is answered, waits, or is the one that the stopped process was sent.
            until(lambda: sum(map(_is_done, replies)) + zoo.service.metrics()[waiting] >= len(calls) - 1)
        differences = []
        for (protocol, number, row, _), reply in zip(calls, replies, strict=True):
            request, reference = entry.requests[number], zoo.references[name][number]
            if found := difference(entry, request, reference, protocol, row, reply.result(), exact=False):
                differences.append(f"{protocol}, request {number}, row {row}: {found}")
    assert not differences, "\n".join(differences)


def _is_done(reply: Any) -> bool:
    return bool(reply.done())
