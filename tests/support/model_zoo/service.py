"""Serve models of the zoo, and compare its responses with MLflow's."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import grpc

from serving.grpc import inference_pb2_grpc as services
from tests.support.model_zoo.comparison import difference
from tests.support.model_zoo.entries import Entry, entries
from tests.support.model_zoo.protocols import PROTOCOLS, Protocols, Reply, Send
from tests.support.process_ids import descendants, fork_server
from tests.support.registry import Registry
from tests.support.service import PROGRAM, SELDOM, Service, served, until

CONCURRENT_REQUESTS = 32
_MAX_SECONDS_HELD = 1.0
_MAX_START_SECONDS = 300
# A stopped process must not cause a rejection.
PATIENCE = {"deadline_seconds": 60, "max_queue_seconds": 60, "load_seconds": 120}
ROOT = Path(__file__).parents[3]
Call = tuple[str, int, int, Send]
"""A protocol, the indices of the request and the row, and the function that sends it."""


@dataclass(frozen=True, slots=True)
class Zoo:
    """A running service of some models.

    Args:
        entries: the models.
        references: what MLflow returns for their requests.
        service: serves them.
        protocols: clients of the service.
    """

    entries: dict[str, Entry]
    references: dict[str, Any]
    service: Service
    protocols: Protocols

    def state(self, name: str) -> dict[str, Any]:
        """Return the state of a model."""
        found: dict[str, Any] = self.service.client.get(f"/models/{name}").json()
        return found

    def differences(self, name: str, protocol: str) -> list[str]:
        """Return how sequential responses to a model's requests by one protocol differ."""
        calls = self._calls(name, [protocol])
        return self._differences(name, calls, (call[-1]() for call in calls), exact=True)

    def differences_together(self, name: str) -> list[str]:
        """Return how responses differ where requests by all protocols wait for the model together."""
        calls = self._calls(name, PROTOCOLS)
        random.Random(name).shuffle(calls)
        # Fewer would seldom share a batch.
        calls = [*islice(cycle(calls), -(-len(calls) // CONCURRENT_REQUESTS) * CONCURRENT_REQUESTS)]
        groups = (calls[start:][:CONCURRENT_REQUESTS] for start in range(0, len(calls), CONCURRENT_REQUESTS))
        replies = (reply for group in groups for reply in self._at_once(name, group))
        return self._differences(name, calls, replies, exact=False)

    def _calls(self, name: str, protocols: Sequence[str]) -> list[Call]:
        entry = self.entries[name]
        return [
            (protocol, number, row, send)
            for protocol in protocols
            if protocol != "stream" or entry.streams
            for number, request in enumerate(entry.requests)
            for row, send in enumerate(self.protocols.sends(name, request, protocol))
        ]

    def _differences(
        self, name: str, calls: list[Call], replies: Iterable[Reply], *, exact: bool
    ) -> list[str]:
        entry, lines = self.entries[name], []
        for (protocol, number, row, _), reply in zip(calls, replies, strict=True):
            request, reference = entry.requests[number], self.references[name][number]
            if differs := difference(entry, request, reference, protocol, row, reply, exact):
                lines.append(f"{protocol}, request {number}, row {row}: {differs}")
        return lines

    def _at_once(self, name: str, calls: list[Call]) -> list[Reply]:
        in_flight = f'serving_inflight_requests{{model="{name}",version="1"}}'

        def have_come() -> bool:
            """Return whether every request is complete, queued, or in the stopped process."""
            return sum(reply.done() for reply in replies) + self.service.metrics().get(in_flight, 0) >= len(
                calls
            )

        with ThreadPoolExecutor(len(calls)) as pool:
            with _held(self.service):
                replies = [pool.submit(send) for *_, send in calls]
                # A process that stays stopped is replaced; requests that come later share calls among them.
                ends = time.monotonic() + _MAX_SECONDS_HELD
                while not have_come() and time.monotonic() < ends:
                    time.sleep(0.02)
            return [reply.result() for reply in replies]


@contextmanager
def _held(service: Service) -> Iterator[None]:
    """Stop all model processes, so that requests wait for them together."""
    pids = descendants(fork_server(service.process.pid))
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # the process of a rejected candidate
            os.kill(pid, number)


def begin_to_save(folder: Path, *modules: str, python: Any = sys.executable) -> subprocess.Popen[bytes]:
    """Begin to save the models of these modules, and what MLflow returns for their requests."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [python, "-W", "ignore", "-m", "tests.support.model_zoo.reference", str(folder), *modules]
    return subprocess.Popen(command, env=environment, cwd=folder)


@contextmanager
def zoo_of(
    modules: Iterable[str],
    folders: Path,
    uri: str,
    home: Path,
    program: Sequence[Any] = (PROGRAM,),
    **settings: Any,
) -> Iterator[Zoo]:
    """Serve the models that were saved in these folders; wait until all are live or rejected."""
    listed = {name: entry for module in modules for name, entry in entries(module).items()}
    references = {name: json.loads((folders / f"{name}.json").read_text()) for name in listed}
    registry = Registry(uri)
    for name in listed:
        registry.register(name, folders / name)
    models = ",".join(f"models:/{name}/1" for name in listed)
    settings |= {"models": models, "grpc_port": 0, "poll_seconds": SELDOM, **PATIENCE}
    with served(uri, home, program, **settings) as service:
        address = service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1]
        with grpc.insecure_channel(address) as channel:
            stub = services.GRPCInferenceServiceStub(channel)
            zoo = Zoo(listed, references, service, Protocols(service.client, stub))
            # Many models load at once: frequent polls would slow them down.
            for name in listed:
                until(partial(_is_settled, zoo, name), pause=0.5, max_seconds=_MAX_START_SECONDS)
            yield zoo


def _is_settled(zoo: Zoo, name: str) -> bool:
    """Return whether a model is live or will not be."""
    state = zoo.state(name)
    candidate = state["candidate"] or {}
    return state["state"] == "live" or candidate.get("state") in ("rejected", "waiting")
