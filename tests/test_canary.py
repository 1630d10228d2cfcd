"""Weighted references on a running service: who answers, steps, and back to nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browsers import CHROMIUM
from casting import Registry, actor
from conftest import NewRegistry
from live import Service, served, until
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families
from promotions import Model

SETTINGS = {
    "sticky_header": "X-User",
    "canary_seconds": 0.1,
    "canary_steps": "25,50",
    "canary_max_latency": 1000,  # how fast a busy machine answers decides nothing
    "probation_seconds": 0,
    "poll_seconds": 0.5,  # each alias is asked for by itself
}


class Pair:
    """A model whose champion and challenger share its requests."""

    def __init__(self, name: str, service: Service, registry: Registry) -> None:
        self.service, self.registry = service, registry
        self.champion = Model(name, service, registry, "@champion")
        self.challenger = Model(name, service, registry, "@challenger")

    def challenge(self, **part: object) -> str:
        """Register a version and let it be the challenger, which is live."""
        version = self.champion.add(**part)
        self.registry.alias(self.champion.name, "challenger", version)
        self.challenger.until_live(version)
        self.challenger.until(lambda state: state["canary"]["share"] or state["canary"]["state"] == "waiting")
        return version

    def ask(self, x: float = 1.0, user: str | None = None) -> httpx.Response:
        headers = {} if user is None else {"X-User": user}
        path = f"/models/{self.champion.name}/predict"
        return self.service.client.post(path, json={"x": x}, headers=headers)

    def answering(self, users: int) -> Counter[str]:
        """Which versions answer so many users, each of whom is answered rightly."""
        found: Counter[str] = Counter()
        for user in range(users):
            answer = self.ask(3.0, str(user)).json()
            assert answer["prediction"] == 3.0 * int(answer["model"]["version"])
            found[answer["model"]["version"]] += 1
        return found

    def until_asked(self, state: str, x: float = 1.0) -> None:
        """Ask until the challenger stands so."""

        def stands() -> bool:
            for _ in range(20):
                self.ask(x)
            return bool(self.challenger.state["canary"]["state"] == state)

        until(stands)


NAMES = [f"shared-{number}" for number in range(7)]
TOLD = "stopped at 25 %"


@pytest.fixture(scope="module")
def pairs(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pair]]:
    """Models on one service, each with a champion, version 1, and nobody who challenges it.

    The last one has a challenger, which another front has found to fail.
    """
    folder = tmp_path_factory.mktemp("canary")
    registry = Registry(new_registry(folder))
    first, second = actor(folder, factor=1.0), actor(folder, factor=2.0)
    for name in NAMES:
        registry.alias(name, "champion", registry.register(name, first))
    failing = registry.register(NAMES[-1], second)
    registry.alias(NAMES[-1], "challenger", failing)
    told = f"{TOLD} of the requests: 5 of 9 requests failed on it"
    registry.client.set_model_version_tag(NAMES[-1], failing, "serving.canary", told)
    references = ",".join(f"models:/{name}@champion=90,models:/{name}@challenger=10" for name in NAMES)
    with served(registry.uri, folder, models=references, **SETTINGS) as service:
        service.until_ready()
        yield [Pair(name, service, registry) for name in NAMES]


@pytest.fixture(scope="module")
def unchallenged(pairs: list[Pair]) -> Iterator[Pair]:
    return iter(pairs[:-1])


@pytest.fixture
def pair(unchallenged: Iterator[Pair]) -> Pair:
    return next(unchallenged)


def test_without_a_challenger_the_champion_answers_and_the_service_is_ready(pair: Pair) -> None:
    assert pair.answering(50) == {"1": 50}
    assert pair.champion.state["canary"] == {"share": 1.0, "state": "first", "reason": ""}
    state = pair.challenger.state
    assert (state["required"], state["canary"]["state"]) == (False, "waiting")
    assert "challenger" in state["canary"]["reason"]
    assert pair.service.client.get("/ready").status_code == 200


def test_a_challenger_that_does_well_rises_by_steps_and_callers_stay(pair: Pair) -> None:
    version = pair.challenge()
    assert pair.challenger.state["canary"]["share"] == 0.25
    with_it = {user for user in range(100) if pair.ask(user=str(user)).headers["x-model-version"] == version}
    assert 5 <= len(with_it) <= 45
    pair.until_asked("steady")
    assert pair.challenger.state["canary"]["share"] == 0.5
    found = pair.answering(200)
    assert 60 <= found[version] <= 140
    assert all(pair.ask(user=str(user)).headers["x-model-version"] == version for user in with_it)
    until(lambda: pair.challenger.tags(version).get("canary", "").startswith("50 % of the requests"))
    shares = {
        sample.labels["uri"]: sample.value
        for family in text_string_to_metric_families(pair.service.client.get("/metrics").text)
        if family.name == "serving_split_share_ratio"
        for sample in family.samples
    }
    assert shares[f"models:/{pair.champion.name}@challenger"] == 0.5
    assert shares[f"models:/{pair.champion.name}@champion"] == 0.5


def test_a_challenger_that_fails_gets_nothing_until_a_person_says_so(pair: Pair) -> None:
    version = pair.challenge(on_large="raise:unfit")
    pair.until_asked("stopped", x=101.0)
    state = pair.challenger.state
    assert state["canary"]["share"] == 0.0
    assert "requests failed on it" in state["canary"]["reason"]
    assert pair.answering(50) == {"1": 50}
    assert state["version"] == version
    assert pair.challenger.predict().headers["x-model-version"] == "1"
    until(lambda: pair.challenger.tags(version).get("canary", "").startswith(TOLD))
    # A tag that goes before the front has seen it is not missed; an alias shows when it has.
    pair.registry.alias(pair.champion.name, "seen", version)
    pair.challenger.until(lambda state: "seen" in state["aliases"])
    pair.registry.client.delete_model_version_tag(pair.champion.name, version, "serving.canary")
    pair.challenger.until(lambda state: state["canary"]["share"] == 0.25)


def test_a_challenger_whose_process_does_not_come_back_gets_nothing(pair: Pair, tmp_path: Path) -> None:
    pair.challenge(on_load=f"once:{tmp_path / 'loaded'}", on_large="exit:1")
    path, hurried = f"/models/{pair.champion.name}/predict", {"X-Request-Timeout": "0.1"}

    def stands() -> bool:
        for _ in range(20):
            pair.service.client.post(path, json={"x": 101.0}, headers=hurried)
        return bool(pair.challenger.state["canary"]["state"] == "stopped")

    until(stands)
    assert "requests failed on it" in pair.challenger.state["canary"]["reason"]
    assert pair.answering(50) == {"1": 50}


def test_a_front_that_starts_later_heeds_what_another_one_found(pairs: list[Pair]) -> None:
    failing = pairs[-1]
    state = failing.challenger.until(lambda state: state["canary"]["state"] == "stopped")
    assert state["canary"]["share"] == 0.0
    assert "5 of 9 requests failed on it" in state["canary"]["reason"]
    assert failing.answering(50) == {"1": 50}
    assert failing.challenger.predict().headers["x-model-version"] == "1"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_why_a_challenger_gets_nothing_is_seen_on_the_page(pairs: list[Pair], browser: Browser) -> None:
    failing = pairs[-1]
    failing.challenger.until(lambda state: state["canary"]["state"] == "stopped")
    page = browser.new_page()
    page.goto(f"{failing.service.url}/#{failing.champion.name}@challenger")
    card = page.get_by_role("region", name="Canary")
    expect(card.locator("div", has_text="Meant to get").locator("dd")).to_have_text("0%")
    expect(card).to_contain_text("5 of 9 requests failed on it")
    page.close()


def test_a_challenger_that_would_break_clients_gets_nothing(pair: Pair) -> None:
    version = pair.challenge(inputs="x: double, y: double", example=None)
    state = pair.challenger.state["canary"]
    assert (state["state"], state["reason"]) == ("waiting", "it would break clients of the first")
    assert pair.answering(50) == {"1": 50}
    path = f"/models/{pair.champion.name}@challenger/predict"
    answer = pair.service.client.post(path, json={"x": 1.0, "y": 2.0})
    assert answer.headers["x-model-version"] == version


def test_the_other_protocols_are_shared_too(pair: Pair) -> None:
    version = pair.challenge()
    name = pair.champion.name
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}
    asked = [
        (f"/invocations?model={name}", {"dataframe_records": [{"x": 1.0}]}),
        (f"/v2/models/{name}/infer", {"inputs": [tensor]}),
    ]
    for path, body in asked:
        versions = {
            pair.service.client.post(path, json=body, headers={"X-User": str(user)}).headers[
                "x-model-version"
            ]
            for user in range(60)
        }
        assert versions == {"1", version}
    assert pair.service.client.get(f"/v2/models/{name}").json()["versions"]
