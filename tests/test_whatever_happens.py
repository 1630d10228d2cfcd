"""Promotions, roll-backs, crashes and load in any order: what is promoted and can serve is what answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import hypothesis
import pytest
from casting import Registry
from conftest import NewRegistry
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from live import served
from pids import children
from promotions import Model

CALLERS = 24


@pytest.fixture(scope="module")
def model(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("whatever")
    registry = Registry(new_registry(folder))
    registry.promote("actor", registry.add("actor"))
    settings: dict[str, Any] = {"poll_seconds": 0.05, "probation_seconds": 0, "deadline_seconds": 60}
    with served(registry.uri, folder, models="models:/actor/Production", **settings) as service:
        service.until_ready()
        yield Model("actor", service, registry)


def test_what_is_promoted_and_can_serve_is_what_answers(model: Model) -> None:
    good, broken = ["1"], []
    broken += [model.add(on_load=acts) for acts in ("raise:broken", "exit:3")]
    good += [model.add(), model.add()]

    class Life(RuleBasedStateMachine):
        """A model's life; the service and the versions are the same in all of them."""

        live = ""
        has_crashed = False
        """Its next processes, if they die young as well, start later and later."""

        @initialize()
        def begin(self) -> None:
            for version in ("1", *good[1:], "1"):  # it is loaded anew
                self.promote(version)

        @rule(version=st.sampled_from(good))
        def promote(self, version: str) -> None:
            self.promoted = model.promote(version)
            model.until_live(version)
            if version != self.live:
                self.live, self.has_crashed = version, False

        @rule(version=st.sampled_from(broken))
        def promote_a_broken_one(self, version: str) -> None:
            if version != self.promoted:
                self.promoted = model.promote(version)
                refused = {"version": version, "state": "rejected"}
                model.until(lambda told: refused.items() <= (told["candidate"] or {}).items())

        @rule(version=st.sampled_from(good), passing=st.sampled_from(good + broken))
        def change_ones_mind(self, version: str, passing: str) -> None:
            model.promote(passing)
            self.promote(version)

        @precondition(lambda self: not self.has_crashed)
        @rule()
        def crash(self) -> None:
            self.has_crashed = True
            (fork_server,) = children(model.service.process.pid)
            for pid in children(fork_server):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        @precondition(lambda self: not self.has_crashed)
        @rule()
        def crash_altogether(self) -> None:
            self.has_crashed = True
            (fork_server,) = children(model.service.process.pid)
            os.kill(fork_server, signal.SIGKILL)

        @rule(poison=st.booleans())
        def load(self, poison: bool) -> None:
            with ThreadPoolExecutor(CALLERS + 1) as pool:
                asked = [pool.submit(model.predict, float(x)) for x in range(CALLERS)]
                spoilt = pool.submit(model.predict, 0.0, "raise:poison") if poison else None
            for x, each in enumerate(asked):
                self.check(x, each.result())
            assert spoilt is None or spoilt.result().status_code == 500

        def check(self, x: float, answer: httpx.Response) -> None:
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert told["prediction"] == x * int(self.live), told
            assert told["model"]["version"] == self.live

        @invariant()
        def all_is_well(self) -> None:
            assert model.is_well(self.live)

    settings = hypothesis.settings(max_examples=5, stateful_step_count=12, phases=[hypothesis.Phase.generate])
    run_state_machine_as_test(Life, settings=settings)  # type: ignore[no-untyped-call]
