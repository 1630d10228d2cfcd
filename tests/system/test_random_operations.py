"""Promotions, roll-backs, crashes, restarts and load in any order, with several fronts on one registry.

The promoted version serves if it can, and a front that starts serves the same version as the others.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.process_ids import children, fork_server
from tests.support.promotions import Callers, Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, environment, until

# Two fronts and their restarts are slow when tests share two cores.
pytestmark = pytest.mark.timeout(300)

CALLERS = 24
MAX_RESTARTS = 4


class Fleet:
    """Two fronts with separate stores that serve one model by its stage."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry, self._folder = registry, folder
        with ThreadPoolExecutor() as starting:
            self.models = [*starting.map(self._start, range(2))]

    def _start(self, place: int) -> Model:
        folder = self._folder / str(place)
        folder.mkdir(exist_ok=True)
        settings = {"poll_seconds": 0.05, "probation_seconds": 0, "deadline_seconds": 60}
        own = environment(self.registry.uri, folder, models="models:/actor/Production", **settings)
        return Model("actor", Service(own, folder), self.registry)

    def stop(self, place: int) -> None:
        service = self.models[place].service
        assert service.stop() == 0
        assert not [line for line in service.lines() if "exception" in line], "\n".join(service.log)

    def kill(self, place: int) -> None:
        self.models[place].service.process.kill()
        self.models[place].service.stop()

    def start(self, place: int, *, empty: bool) -> str:
        """Restart a front, and return the first version that it serves."""
        if empty:
            shutil.rmtree(self._folder / str(place) / "store")
        self.models[place] = model = self._start(place)
        return until(lambda: str(model.state["version"] or ""))

    def promote(self, version: str) -> None:
        self.registry.promote("actor", version)

    def until_live(self, version: str) -> None:
        for model in self.models:
            model.until_live(version)


@pytest.fixture(scope="module")
def fleet(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("whatever")
    registry = Registry(new_registry(folder))
    registry.promote("actor", registry.add("actor"))
    fronts = Fleet(registry, folder)
    try:
        fronts.until_live("1")
        yield fronts
        for place in range(2):
            fronts.stop(place)
    finally:
        for place in range(2):
            fronts.kill(place)


PLACES = st.integers(0, 1)


def test_promoted_version_serves_after_any_events(fleet: Fleet) -> None:
    good, broken = ["1"], []
    add = fleet.models[0].add
    broken += [add(on_load=acts) for acts in ("raise:broken", "exit:3")]
    good += [add(), add()]
    restarts = iter(range(MAX_RESTARTS))
    which = {"place": PLACES, "promoted": st.sampled_from(["", *good, *broken])}
    how: Any = which | {"kill": st.booleans(), "empty": st.booleans()}

    class Life(RuleBasedStateMachine):
        """A sequence of events for one model; all sequences share fronts and versions."""

        live = ""
        has_crashed = False
        """After a crash, processes that die early restart after growing delays."""

        @initialize(**how)
        def begin(self, place: int, promoted: str, kill: bool, empty: bool) -> None:
            for version in (*good, "1"):  # loads version 1 again
                self.promote(version)
            self.restart(place, promoted, kill, empty)

        @rule(version=st.sampled_from(good))
        def promote(self, version: str) -> None:
            with ExitStack() as stack:
                callers = [stack.enter_context(Callers(model, count=1)) for model in fleet.models]
                self.promoted = version
                fleet.promote(version)
                fleet.until_live(version)
            assert [caller.faults for caller in callers] == [[], []]
            if version != self.live:
                self.live, self.has_crashed = version, False

        @rule(version=st.sampled_from(broken))
        def promote_broken_version(self, version: str) -> None:
            if version != self.promoted:
                self.promoted = version
                fleet.promote(version)
                refused = {"version": version, "state": "rejected"}
                for model in fleet.models:
                    model.until(lambda state: refused.items() <= (state["candidate"] or {}).items())

        @rule(version=st.sampled_from(good), passing=st.sampled_from(good + broken))
        def promote_twice(self, version: str, passing: str) -> None:
            fleet.promote(passing)
            self.promote(version)

        @rule(**how)
        def restart(self, place: int, promoted: str, kill: bool, empty: bool) -> None:
            """Restart a front, optionally during a promotion, while the other one serves."""
            if next(restarts, None) is None:
                return  # a restart takes seconds
            if promoted:
                self.promoted = promoted
                fleet.promote(promoted)
            self.live = promoted if promoted in good else self.live
            (fleet.kill if kill else fleet.stop)(place)
            fleet.models[1 - place].until_live(self.live)
            assert fleet.start(place, empty=empty) == self.live
            self.has_crashed = False

        @precondition(lambda self: not self.has_crashed)
        @rule(place=PLACES, altogether=st.booleans())
        def crash(self, place: int, altogether: bool) -> None:
            self.has_crashed = True
            server = fork_server(fleet.models[place].service.process.pid)
            for pid in [server] if altogether else children(server):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        @rule(place=PLACES, poison=st.booleans())
        def load(self, place: int, poison: bool) -> None:
            model = fleet.models[place]
            with ThreadPoolExecutor(CALLERS + 1) as pool:
                pending = [pool.submit(model.predict, float(x)) for x in range(CALLERS)]
                spoilt = pool.submit(model.predict, 0.0, "raise:poison") if poison else None
            for x, future in enumerate(pending):
                self.check(x, future.result())
            assert spoilt is None or spoilt.result().status_code == 500

        def check(self, x: float, response: httpx.Response) -> None:
            assert response.status_code == 200, response.text
            body = response.json()
            assert body["prediction"] == x * int(self.live), body
            assert body["model"]["version"] == self.live

        @invariant()
        def all_is_well(self) -> None:
            for model in fleet.models:
                assert model.is_well(self.live)

    settings = hypothesis.settings(max_examples=3, stateful_step_count=12, phases=[hypothesis.Phase.generate])
    run_state_machine_as_test(Life, settings=settings)
