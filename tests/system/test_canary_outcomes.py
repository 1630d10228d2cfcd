"""A canary on outcomes: a real service, registry and journal, with feedback over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest

from serving.errors import RegistryRejected
from serving.reference import Reference
from serving.registry.reference_target import point
from tests.service.test_canary import SETTINGS, Pair, by_weight
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import served, until

pytestmark = pytest.mark.timeout(300)
CLASSES = {"serving": {"task": "classification", "classes": [f"{number}.0" for number in range(5)]}}
REQUESTS = 100
"""Requests to each version of a step, which is also the number that a step needs."""
NAMES = {"classes": CLASSES, "numbers": None, "moved": None}


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Return a registry of models whose champion is version 1."""
    made = Registry(new_registry(tmp_path_factory.mktemp("registry")))
    for name, metadata in NAMES.items():
        version = made.register(name, save_scripted_model(made.folder, factor=1.0, metadata=metadata))
        made.alias(name, "champion", version)
    return made


@pytest.fixture(scope="module")
def pairs(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    folder = tmp_path_factory.mktemp("service")
    settings = SETTINGS | {
        "journal_url": f"sqlite:///{folder}/journal.db",
        "canary_margin": 0.2,
        "canary_max_error": 1.0,
        "canary_promote": True,
        "canary_min_outcomes": 1,
    }
    with served(registry.uri, folder, models=by_weight(*NAMES), **settings) as service:
        service.until_ready()
        until(lambda: "serving_journal_failing 0.0" in service.client.get("/metrics").text)
        yield {name: Pair(name, service, registry) for name in NAMES}


def send_outcomes(pair: Pair, outcome: float | str) -> None:
    """Send requests to both versions, and the outcome of each."""
    responses = [pair.ask_at(alias) for alias in ("champion", "challenger") for _ in range(REQUESTS)]
    feedback = [
        {"prediction_id": response.raise_for_status().headers["x-prediction-id"], "outcome": outcome}
        for response in responses
    ]
    pair.service.client.post("/feedback", json={"feedback": feedback}).raise_for_status()


def test_harmful_challenger_is_stopped_with_the_reason(pairs: dict[str, Pair]) -> None:
    pair = pairs["classes"]
    version = pair.challenge(metadata=CLASSES)
    pair.ask_times("champion", REQUESTS)
    pair.ask_times("challenger", REQUESTS)
    state = pair.challenger.until(lambda state: state["canary"].get("outcomes"))["canary"]
    assert (state["state"], state["share"]) == ("rising", 0.25)  # it waits for outcomes
    assert state["outcomes"]["verdict"] == "waiting"
    assert "which must prove harm, or less harm than 0.2" in state["reason"]
    send_outcomes(pair, "1.0")
    stopped = pair.challenger.until(lambda state: state["canary"]["state"] == "stopped")["canary"]
    assert stopped["share"] == 0.0
    assert "its outcomes are worse: 100 outcomes against 100" in stopped["reason"]
    pair.until_tagged(version, "stopped at 25 % of the requests: its outcomes are worse")
    until(lambda: "canary.state" in pair.challenger.tags(version))
    progress = json.loads(pair.challenger.tags(version)["canary.state"])
    assert progress["phase"] == "stopped"
    assert progress["outcomes"]["challenger_loss"] == 1.0
    assert progress["outcomes"]["champion_loss"] == 0.0
    assert pair.answering(20) == {"1": 20}
    assert pair.champion.state["version"] == "1"


def test_harmless_challenger_is_promoted_once(pairs: dict[str, Pair]) -> None:
    pair, name = pairs["numbers"], "numbers"
    version = pair.challenge(factor=1.0)
    send_outcomes(pair, 1.001)
    pair.until_given(0.5)
    assert pair.challenger.state["canary"]["state"] == "steady"
    send_outcomes(pair, 1.001)
    pair.champion.until_live(version)
    assert str(pair.registry.client.get_model_version_by_alias(name, "champion").version) == version
    pair.until_tagged(version, f"promoted to models:/{name}@champion after its last step: 100 outcomes")
    pair.until_given(0.0)
    assert pair.challenger.state["canary"]["state"] == "promoted"
    # A person who goes back to the earlier version has the last word.
    pair.registry.alias(name, "champion", "1")
    pair.champion.until_live("1")
    send_outcomes(pair, 1.001)
    assert pair.champion.state["version"] == "1"
    assert pair.challenger.state["canary"]["share"] == 0.0


def test_promotion_that_fails_is_reported_and_repeated(pairs: dict[str, Pair]) -> None:
    pair = pairs["moved"]
    version = pair.challenge(factor=1.0)
    broken = pair.champion.add(on_load="raise:broken")
    pair.registry.alias("moved", "champion", broken)
    pair.champion.until_refused(broken)
    send_outcomes(pair, 1.0)
    pair.until_given(0.5)
    send_outcomes(pair, 1.0)
    problem = f"models:/moved@champion names version {broken} meanwhile"
    pair.challenger.until(lambda state: problem in state["canary"]["reason"])
    assert pair.champion.state["version"] == "1"
    pair.registry.alias("moved", "champion", "1")
    pair.champion.until_live(version)


@pytest.mark.filterwarnings("ignore:.*stage:FutureWarning")
def test_stage_is_pointed_at_a_version(registry: Registry) -> None:
    for _ in range(3):
        registry.add("staged")
    registry.promote("staged", "2")
    move = partial(point, Reference.parse("models:/staged/Production"), client=registry.client)
    with pytest.raises(RegistryRejected, match="names version 2 meanwhile"):
        move("1", "3")
    move("1", "2")
    move("1", "2")  # as another front does at the same moment
    stages = {number: registry.client.get_model_version("staged", number).current_stage for number in "123"}
    assert stages == {"1": "Production", "2": "Archived", "3": "None"}
