"""Weighted references on a running service: routing, canary steps and aborts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families

from serving.rollout import canary_state
from tests.support.browser import CHROMIUM
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, served, until

SETTINGS = {
    "sticky_header": "X-User",
    "canary_seconds": 0.1,
    "canary_steps": "25,50",
    "canary_max_latency_ratio": 1000,  # a busy machine must not stop the canary
    "probation_seconds": 0,
    "poll_seconds": 0.5,  # each alias is polled separately
}
SLOWER = 10
"""Factor of the primary's latency above which a challenger is slow."""
SLOW = "toil:3"


class Pair:
    """A model whose champion and challenger share its requests."""

    def __init__(self, name: str, service: Service, registry: Registry) -> None:
        self.service, self.registry = service, registry
        self.champion = Model(name, service, registry, "@champion")
        self.challenger = Model(name, service, registry, "@challenger")

    def challenge(self, version: str = "", share: float = 0.25, **part: object) -> str:
        """Make a version the challenger, by default a new one; wait until it is live with its first share."""
        version = version or self.champion.add(**part)
        self.registry.alias(self.champion.name, "challenger", version)
        self.challenger.until_live(version)
        self.until_given(share)
        return version

    def until_given(self, share: float) -> None:
        """Wait until the challenger has this share of the requests."""
        self.challenger.until(lambda state: state["canary"]["share"] == share)

    def until_tagged(self, version: str, text: str) -> None:
        """Wait until the canary tag of a version begins with this text."""
        until(lambda: self.challenger.tags(version).get("canary", "").startswith(text))

    def untag(self, version: str) -> None:
        """Delete the canary tag, as a user does to restart the canary."""
        self.registry.client.delete_model_version_tag(self.champion.name, version, "serving.canary")

    def ask_at(self, alias: str, x: float = 1.0) -> httpx.Response:
        """Send a request to the version that an alias names."""
        return self.service.client.post(f"/models/{self.champion.name}@{alias}/predict", json={"x": x})

    def ask_times(self, alias: str, times: int, x: float = 1.0) -> None:
        """Send requests to the version that an alias names, one after the other."""
        for _ in range(times):
            self.ask_at(alias, x).raise_for_status()

    def rise(self, share: float) -> None:
        """Send requests to both until the challenger reaches its next step."""
        self.ask_times("champion", 100)
        self.ask_times("challenger", 100)
        self.until_given(share)

    def ask_at_once(self, alias: str, times: int, x: float) -> None:
        """Send requests concurrently to the version that an alias names."""
        with ThreadPoolExecutor(times) as callers:
            for call in [callers.submit(self.ask_times, alias, 1, x) for _ in range(times)]:
                call.result()

    def ask(self, x: float = 1.0, user: str | None = None) -> httpx.Response:
        headers = {} if user is None else {"X-User": user}
        path = f"/models/{self.champion.name}/predict"
        return self.service.client.post(path, json={"x": x}, headers=headers)

    def answering(self, users: int) -> Counter[str]:
        """Count the users that each version serves, and verify the predictions."""
        counts: Counter[str] = Counter()
        for user in range(users):
            body = self.ask(3.0, str(user)).json()
            assert body["prediction"] == 3.0 * int(body["model"]["version"])
            counts[body["model"]["version"]] += 1
        return counts

    def until_asked(self, state: str, x: float = 1.0) -> None:
        """Send requests until the challenger is in this state."""

        def stands() -> bool:
            for _ in range(20):
                self.ask(x)
            return bool(self.challenger.state["canary"]["state"] == state)

        until(stands)


NAMES = [f"shared-{number}" for number in range(12)]
ON_BOTH = NAMES[-2]
LATE = [f"late-{number}" for number in range(3)]
TOLD = "stopped at 25 %"


def by_weight(*names: str) -> str:
    """Return weighted references for the models."""
    return ",".join(f"models:/{name}@champion=90,models:/{name}@challenger=10" for name in names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary")


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, folder: Path) -> Registry:
    """Return a registry of models whose champion is version 1, without challengers."""
    instance, first = Registry(new_registry(folder)), save_scripted_model(folder, factor=1.0)
    for name in (*NAMES, *LATE):
        instance.alias(name, "champion", instance.register(name, first))
    return instance


@pytest.fixture(scope="module")
def pairs(registry: Registry, folder: Path) -> Iterator[list[Pair]]:
    """Serve the models; another front has stopped the challenger of the last one."""
    failing = registry.add(NAMES[-1], factor=2.0)
    registry.alias(NAMES[-1], "challenger", failing)
    reason = f"{TOLD} of the requests: 5 of 9 requests failed on it"
    for tag, value in canary_state.stop(f"models:/{NAMES[-1]}@challenger", 0.25, reason).items():
        registry.client.set_model_version_tag(NAMES[-1], failing, tag, value)
    with served(registry.uri, folder, models=by_weight(*NAMES), **SETTINGS) as service:
        service.until_ready()
        yield [Pair(name, service, registry) for name in NAMES]


@dataclass(frozen=True, slots=True)
class Fronts:
    """A model on two services; the later one starts while the challenger has 50 % on the earlier one."""

    early: Pair
    late: Pair
    version: str
    others: list[Pair]
    """Models only on the later service, which also compares the latency of challengers."""


@pytest.fixture(scope="module")
def fronts(
    pairs: list[Pair], registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fronts]:
    early = pairs[NAMES.index(ON_BOTH)]
    version = early.challenge(on_large="raise:unfit")
    early.rise(0.5)
    early.until_tagged(version, "up to 50 %")
    settings = SETTINGS | {"canary_steps": "25,50,100", "canary_max_latency_ratio": SLOWER}
    home = tmp_path_factory.mktemp("late")
    with served(registry.uri, home, models=by_weight(ON_BOTH, *LATE), **settings) as service:
        service.until_ready()
        late, *others = [Pair(name, service, registry) for name in (ON_BOTH, *LATE)]
        yield Fronts(early, late, version, others)


@pytest.fixture(scope="module")
def unchallenged(pairs: list[Pair]) -> Iterator[Pair]:
    return iter(pairs[:-2])


@pytest.fixture
def pair(unchallenged: Iterator[Pair]) -> Pair:
    return next(unchallenged)


def test_service_is_ready_without_a_challenger(pair: Pair) -> None:
    assert pair.answering(50) == {"1": 50}
    assert pair.champion.state["canary"] == {"share": 1.0, "state": "first", "reason": ""}
    state = pair.challenger.state
    assert (state["required"], state["canary"]["state"]) == (False, "waiting")
    assert "challenger" in state["canary"]["reason"]
    assert pair.service.client.get("/ready").status_code == 200


def test_good_challenger_rises_stepwise_and_keeps_its_users(pair: Pair) -> None:
    version = pair.challenge()
    assert pair.challenger.state["canary"]["share"] == 0.25
    with_it = {user for user in range(100) if pair.ask(user=str(user)).headers["x-model-version"] == version}
    assert 5 <= len(with_it) <= 45
    pair.until_asked("steady")
    assert pair.challenger.state["canary"]["share"] == 0.5
    counts = pair.answering(200)
    assert 60 <= counts[version] <= 140
    assert all(pair.ask(user=str(user)).headers["x-model-version"] == version for user in with_it)
    pair.until_tagged(version, "up to 50 % of the requests, as models:/")
    shares = {
        sample.labels["uri"]: sample.value
        for family in text_string_to_metric_families(pair.service.client.get("/metrics").text)
        if family.name == "serving_split_share_ratio"
        for sample in family.samples
    }
    assert shares[f"models:/{pair.champion.name}@challenger"] == 0.5
    assert shares[f"models:/{pair.champion.name}@champion"] == 0.5


def test_failing_challenger_is_stopped_until_its_tag_is_deleted(pair: Pair) -> None:
    version = pair.challenge(on_large="raise:unfit")
    pair.until_asked("stopped", x=101.0)
    state = pair.challenger.state
    assert state["canary"]["share"] == 0.0
    assert "requests failed on it" in state["canary"]["reason"]
    assert pair.answering(50) == {"1": 50}
    assert state["version"] == version
    assert pair.challenger.predict().headers["x-model-version"] == "1"
    pair.until_tagged(version, TOLD)
    pair.untag(version)  # usually before the front itself has read the tag
    pair.until_given(0.25)


def test_row_47_client_requests_cannot_stop_a_challenger(pair: Pair) -> None:
    version = pair.challenge(on_large="raise:unfit")
    path = f"/models/{pair.champion.name}@challenger/predict"
    for _ in range(8):
        hurried = {"X-Request-Timeout": "0.1"}
        row = {"x": 1.0, "act": "toil:0.3"}
        assert pair.service.client.post(path, json=row, headers=hurried).status_code == 504
    calls = f'serving_batch_rows_count{{model="{pair.champion.name}",version="1"}}'
    before = pair.service.metrics()[calls]
    for _ in range(8):
        row = {"x": 1.0, "act": "raise:poison"}
        assert pair.service.client.post(path, json=row).status_code == 500
    # A sample of them was replayed on the champion.
    until(lambda: pair.service.metrics()[calls] >= before + 5)
    assert pair.challenger.state["canary"]["state"] == "rising"
    pair.until_asked("stopped", x=101.0)
    assert pair.challenger.state["version"] == version


def test_challenger_whose_process_cannot_restart_is_stopped(pair: Pair, tmp_path: Path) -> None:
    pair.challenge(on_load=f"once:{tmp_path / 'loaded'}", on_large="exit:1")
    path, hurried = f"/models/{pair.champion.name}/predict", {"X-Request-Timeout": "0.1"}

    def stands() -> bool:
        for _ in range(20):
            pair.service.client.post(path, json={"x": 101.0}, headers=hurried)
        return bool(pair.challenger.state["canary"]["state"] == "stopped")

    until(stands)
    assert "requests failed on it" in pair.challenger.state["canary"]["reason"]
    assert pair.answering(50) == {"1": 50}


def test_later_front_respects_a_stop_by_another(pairs: list[Pair]) -> None:
    failing = pairs[-1]
    state = failing.challenger.until(lambda state: state["canary"]["state"] == "stopped")
    assert state["canary"]["share"] == 0.0
    assert "5 of 9 requests failed on it" in state["canary"]["reason"]
    assert failing.answering(50) == {"1": 50}
    assert failing.challenger.predict().headers["x-model-version"] == "1"


def test_later_front_starts_over_and_keeps_highest_tag(
    fronts: Fronts,
) -> None:
    fronts.late.until_given(0.25)
    # Tags are written in order: wait for the tag of a canary that started later.
    elsewhere = fronts.others[0]
    elsewhere.until_tagged(elsewhere.challenge(), "up to 25 %")
    fronts.late.until_tagged(fronts.version, "up to 50 %")
    assert fronts.early.challenger.state["canary"]["share"] == 0.5


def test_canary_stopped_by_one_front_stops_on_others(fronts: Fronts) -> None:
    early, late = fronts.early, fronts.late
    late.until_given(0.25)
    for _ in range(5):
        assert late.ask_at("challenger", 101.0).status_code == 500
    for front in (late, early):
        state = front.challenger.until(lambda state: state["canary"]["state"] == "stopped")
        assert state["canary"]["reason"].startswith(TOLD)
        assert front.answering(50) == {"1": 50}
    early.untag(fronts.version)
    for front in (late, early):
        front.until_given(0.25)
    early.until_tagged(fronts.version, "up to 25 %")


def test_moved_alias_restarts_the_canary(pair: Pair) -> None:
    version = pair.challenge()
    pair.rise(0.5)
    another = pair.challenge()
    pair.until_tagged(version, "received up to 50 %")
    pair.until_tagged(another, "up to 25 %")
    assert {*pair.answering(50)} == {"1", another}
    pair.challenge(version)
    pair.until_tagged(version, "up to 25 %")
    pair.until_tagged(another, "received up to 25 %")


def test_deleted_alias_aborts_the_canary(pair: Pair) -> None:
    version = pair.challenge()
    pair.registry.client.delete_registered_model_alias(pair.champion.name, "challenger")
    pair.until_given(0.0)
    state = pair.challenger.state["canary"]
    assert state["state"] == "waiting"
    assert "names nothing in the registry" in state["reason"]
    assert pair.answering(50) == {"1": 50}
    pair.until_tagged(version, "received up to 25 %")
    pair.challenge(version)
    pair.until_tagged(version, "up to 25 %")


def test_slow_challenger_is_stopped(fronts: Fronts) -> None:
    pair = fronts.others[1]
    pair.challenge(on_large=SLOW)
    pair.ask_times("champion", 100)
    pair.ask_times("challenger", 90)
    pair.ask_at_once("challenger", 20, 101.0)
    state = pair.challenger.until(lambda state: state["canary"]["state"] == "stopped")
    assert state["canary"]["reason"].startswith(f"{TOLD} of the requests: its 95th percentile is")
    assert pair.answering(20) == {"1": 20}


def test_challenger_at_full_share_is_compared_with_earlier_latency(fronts: Fronts) -> None:
    pair = fronts.others[2]
    version = pair.challenge(on_large=SLOW)
    pair.rise(0.5)
    pair.rise(1.0)
    assert pair.champion.state["canary"]["share"] == 0.0
    assert pair.answering(80) == {version: 80}
    pair.ask_at_once("challenger", 20, 101.0)
    state = pair.challenger.until(lambda state: state["canary"]["state"] == "stopped")
    assert state["canary"]["reason"].startswith("stopped at 100 % of the requests: its 95th percentile is")
    assert pair.answering(20) == {"1": 20}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_page_shows_why_a_canary_stopped(pairs: list[Pair], browser: Browser) -> None:
    failing = pairs[-1]
    failing.challenger.until(lambda state: state["canary"]["state"] == "stopped")
    page = browser.new_page()
    page.goto(f"{failing.service.url}/#{failing.champion.name}@challenger")
    card = page.get_by_role("region", name="Canary")
    expect(card.locator("div", has_text="Intended share").locator("dd")).to_have_text("0%")
    expect(card).to_contain_text("5 of 9 requests failed on it")
    page.close()


def test_incompatible_challenger_gets_no_requests(pair: Pair) -> None:
    version = pair.challenge(share=0.0, inputs="x: double, y: double", example=None)
    state = pair.challenger.state["canary"]
    assert (state["state"], state["reason"]) == ("waiting", "it would break clients of the first")
    assert pair.answering(50) == {"1": 50}
    path = f"/models/{pair.champion.name}@challenger/predict"
    response = pair.service.client.post(path, json={"x": 1.0, "y": 2.0})
    assert response.headers["x-model-version"] == version


def test_canary_splits_requests_of_all_protocols(pair: Pair) -> None:
    version = pair.challenge()
    name = pair.champion.name
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}
    requests = [
        (f"/invocations?model={name}", {"dataframe_records": [{"x": 1.0}]}),
        (f"/v2/models/{name}/infer", {"inputs": [tensor]}),
    ]
    for path, body in requests:
        versions = {
            pair.service.client.post(path, json=body, headers={"X-User": str(user)}).headers[
                "x-model-version"
            ]
            for user in range(60)
        }
        assert versions == {"1", version}
    assert pair.service.client.get(f"/v2/models/{name}").json()["versions"]
