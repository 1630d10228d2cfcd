"""Promotions that are decided by labelled rows: a real service, and a real registry."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, quiet
from tests.support.service import FOR_SKLEARN, PROGRAM, served, until
from training import log_model

NAMES = ["champion-coin", "coin", "checked-coin"]
ROWS = 5000
pytestmark = pytest.mark.timeout(300)  # a start of two models of sklearn, beside other tests
GOOD, WORSE, EQUAL = 0.03, 0.06, 0.032
"""Errors of the versions: the share of rows that they predict wrongly."""


def labelled_rows(count: int = ROWS) -> tuple[pd.DataFrame, list[str]]:
    """Return rows whose label is yes above 0.5; the northern ones are above 0.4."""
    x = np.linspace(0, 1, count, endpoint=False)
    rows = pd.DataFrame({"x": x, "region": np.where(x > 0.4, "north", "south")})
    return rows, ["yes" if value >= 0.5 else "no" for value in x]


def threshold_model(error: float) -> LogisticRegression:
    """Return a classifier that predicts yes above a threshold, wrong in this share of the rows."""
    model = LogisticRegression().fit(pd.DataFrame({"x": [0.0, 1.0]}), ["no", "yes"])
    threshold, slope = 0.5 + error - 1e-6, 50.0
    model.coef_[:], model.intercept_[:] = slope, -slope * threshold
    return model


@dataclass(frozen=True)
class Coin(Model):
    """A served model whose versions have known errors."""

    logged: Callable[..., str] = lambda *args: ""

    def promote_error(self, error: float, rows: int = 0) -> str:
        """Register and promote a version with this error, logged with this number of labelled rows."""
        client = self.registry.client
        version = str(client.create_model_version(self.name, self.logged(error, rows)).version)
        self.registry.promote(self.name, version)
        return version

    def require(self, rules: str) -> None:
        self.registry.client.set_registered_model_tag(self.name, "serving.require", rules)

    def evidence(self, version: str) -> dict[str, Any]:
        """Return the evidence in the tag of a version, once its run is recorded."""

        def recorded() -> dict[str, Any] | None:
            evidence: dict[str, Any] = json.loads(self.tags(version).get("evaluation", "{}"))
            return evidence if "run_id" in evidence else None

        return until(recorded)


@pytest.fixture(scope="module")
def coins(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Coin]]:
    """Serve models whose first version is live, without any rule."""
    folder = tmp_path_factory.mktemp("evaluation")
    uri = new_registry(folder)
    registry = Registry(uri)
    uris: dict[tuple[float, int], str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)

        def logged(error: float, rows: int = 0) -> str:
            if (error, rows) not in uris:
                table = pd.DataFrame({"x": [0.1, 0.9]})
                evaluation = labelled_rows(rows) if rows else None
                with quiet():
                    uris[error, rows] = log_model(threshold_model(error), table, evaluation=evaluation).uri
            return uris[error, rows]

        for name in NAMES:
            registry.client.create_registered_model(name)
            registry.client.create_model_version(name, logged(GOOD))
            registry.promote(name, "1")
        models = ",".join(f"models:/{name}/Production" for name in NAMES)
        journal = f"sqlite:///{folder / 'journal.db'}"
        settings = {"models": models, "preload": FOR_SKLEARN, "journal_url": journal}
        with served(uri, folder, poll_seconds=0.5, **settings) as service:
            service.until_ready()
            yield [Coin(name, service, registry, logged=logged) for name in NAMES]


@pytest.fixture
def coin(coins: list[Coin]) -> Iterator[Coin]:
    """Yield a model that tests share: each promotes versions of its own."""
    yield coins[1]
    client = coins[1].registry.client
    client.set_registered_model_tag("coin", "serving.evaluation", "")


def test_worse_version_is_rejected_and_equal_one_goes_live(coins: list[Coin]) -> None:
    coin = coins[0]
    coin.require("accuracy >= 0.9; accuracy >= champion - 0.005; recall[yes] >= 0.9")
    worse = coin.promote_error(WORSE, ROWS)
    reason = coin.until_refused(worse)
    assert "accuracy is 0.94 and the champion's is 0.97" in reason
    assert "accuracy >= champion - 0.005 is required" in reason
    assert "compared with champion-coin version 1" in reason
    assert coin.until_tagged(worse, "rejected")["reason"] == reason
    evidence = coin.evidence(worse)
    decisions = ["holds", "fails", "fails"]
    assert [rule["decision"] for rule in evidence["rules"]] == decisions
    assert (evidence["passed"], evidence["rows"], evidence["champion"]) == (
        False,
        ROWS,
        "champion-coin version 1",
    )
    equal = coin.promote_error(EQUAL, ROWS)
    coin.until_live(equal)
    reason = coin.until_tagged(equal, "live")["reason"]
    assert "it meets its rules, with 95 % bounds: accuracy >= 0.9 (0.968, 0.963" in reason
    assert "; accuracy >= champion - 0.005 (0.968 against 0.97, difference -0.00" in reason
    assert "…" not in reason
    evidence = coin.evidence(equal)
    rule = evidence["rules"][1]
    assert rule["low"] <= 0.968 - 0.97 <= rule["high"]
    run = coin.registry.client.get_run(evidence["run_id"])
    assert run.data.metrics["accuracy"] == pytest.approx(0.968)
    assert run.data.metrics["champion.accuracy"] == pytest.approx(0.97)
    until(lambda: len(coin.registry.client.list_artifacts(evidence["run_id"])) == 2, max_seconds=120)
    files = {file.path for file in coin.registry.client.list_artifacts(evidence["run_id"])}
    assert files == {"evaluation.json", "confusion_matrix.png"}
    rules = coin.state["evaluation"]["rules"]
    assert [state["decision"] for state in rules] == ["holds", "holds", "holds"]


def test_command_evaluates_beforehand(coins: list[Coin]) -> None:
    """Promote nothing: version 1 is live, and the others are only registered."""
    coin = coins[2]
    coin.require("accuracy >= champion - 0.005; accuracy[region=south] >= 0.9")
    client = coin.registry.client
    results = {}
    for error in (WORSE, EQUAL):
        version = client.create_model_version(coin.name, coin.logged(error, ROWS)).version
        command = [str(PROGRAM), "check", f"models:/{coin.name}/{version}", "--evaluate"]
        results[error] = subprocess.run(command, env=coin.service.env, capture_output=True, text=True)
    assert [result.returncode for result in results.values()] == [1, 0], results
    row = re.search(r"accuracy >= champion - 0\.005 +(\w+) +(\S+) +(\S+) ", results[WORSE].stdout)
    assert row, results[WORSE].stdout
    assert row.groups() == ("fails", "0.94", "0.97")
    outputs = [result.stdout + result.stderr for result in results.values()]
    assert not any("unexpectedly" in output for output in outputs), outputs
    assert "compared with checked-coin version 1" in results[EQUAL].stdout
    assert f"models:/{coin.name}/3 would go live" in results[EQUAL].stdout


def test_invalid_rule_waits_until_it_is_corrected(coin: Coin) -> None:
    coin.require("accuracy > 0.9")
    version = coin.promote_error(EQUAL, ROWS)
    reason = coin.until_refused(version, "waiting")
    assert "its rules (serving.require) cannot be read: the rule 'accuracy > 0.9' is not a rule" in reason
    coin.require("accuracy >= 0.9")
    coin.until_live(version)


def test_too_few_rows_are_not_enough_evidence(coin: Coin) -> None:
    coin.require("accuracy >= 0.95")
    reason = coin.until_refused(coin.promote_error(GOOD, 100))
    assert "which is not enough evidence for accuracy >= 0.95" in reason


def test_rule_on_a_slice_uses_only_its_rows(coin: Coin) -> None:
    coin.require("accuracy >= 0.93; accuracy[region=south] >= 0.99; accuracy[region=north] >= 0.93")
    version = coin.promote_error(WORSE, ROWS)
    reason = coin.until_refused(version)
    assert reason.startswith("accuracy[region=north] is 0.9 ")
    decisions = [rule["decision"] for rule in coin.evidence(version)["rules"]]
    assert decisions == ["holds", "holds", "fails"]


def test_latency_rule_is_measured(coin: Coin) -> None:
    coin.require("p95_ms <= 0.001")
    version = coin.promote_error(EQUAL, ROWS)
    assert "p95_ms <= 0.001 is required" in coin.until_refused(version)
    coin.require("p95_ms <= 10000; p50_ms <= 100 * champion")
    coin.registry.client.set_model_version_tag(coin.name, version, "retry", "1")
    coin.until_live(version)
    assert coin.evidence(version)["rules"][0]["rows"] >= 20


def test_rows_of_the_tag_are_pinned_by_their_digest(coin: Coin, tmp_path: Path) -> None:
    rows, labels = labelled_rows()
    path = tmp_path / "rows.csv"
    rows.assign(answer=labels).to_csv(path, index=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tag = "serving.evaluation"
    coin.registry.client.set_registered_model_tag(coin.name, tag, f"{path}#sha256={'0' * 64}&target=answer")
    coin.require("accuracy >= 0.95")
    version = coin.promote_error(EQUAL)
    reason = coin.until_refused(version)
    assert f"pins: sha256:{digest}, not sha256:{'0' * 64}" in reason
    coin.registry.client.set_registered_model_tag(coin.name, tag, f"{path}#sha256={digest}&target=answer")
    coin.until_live(version)
    assert coin.evidence(version)["digest"] == f"sha256:{digest}"


def test_recorded_outcomes_decide(coin: Coin) -> None:
    rows, labels = labelled_rows(500)
    body = {"rows": [{"x": value} for value in rows["x"]]}
    response = coin.service.client.post(f"/models/{coin.name}/predict/batch", json=body)
    identity = response.headers["x-prediction-id"]
    outcomes = [{"prediction_id": identity, "row": row, "outcome": label} for row, label in enumerate(labels)]
    until(lambda: coin.service.client.post("/feedback", json={"feedback": outcomes}).is_success)
    coin.registry.client.set_registered_model_tag(coin.name, "serving.evaluation", "journal:7d")
    coin.require("accuracy >= 0.96")
    version = coin.promote_error(WORSE)
    assert "accuracy is 0.94" in coin.until_refused(version)
    assert (coin.evidence(version)["source"], coin.evidence(version)["rows"]) == ("journal:7d", 500)
    command = [str(PROGRAM), "check", f"models:/{coin.name}/{version}", "--evaluate"]
    result = subprocess.run(command, env=coin.service.env, capture_output=True, text=True)
    assert result.returncode == 1, result
    assert "500 labelled rows from journal:7d" in result.stdout
    assert "accuracy is 0.94" in result.stdout


def test_missing_rows_are_named(coin: Coin) -> None:
    coin.require("accuracy >= 0.9")
    reason = coin.until_refused(coin.promote_error(EQUAL), "waiting")
    assert "its rules need labelled rows" in reason
