"""Evaluations before a version goes live: real model processes and a real registry, one tick at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from serving.evaluation.evaluation_check import EvaluationCheck
from serving.evaluation.evaluator import Evaluator
from serving.evaluation.evidence import Evidence
from serving.evaluation.rule_watch import RuleWatch
from serving.evaluation.sources import OUTCOME
from serving.feature_interface import RecordedOutcomes
from serving.models.loaded_model import LoadedModel
from serving.processes.launcher import Launcher
from serving.registry.follower import Follower
from tests.support.followers import FollowerHarness, live, settle
from tests.support.registry import save_scripted_model

pytestmark = pytest.mark.anyio
ROWS = 400


class EvaluationHarness(FollowerHarness):
    """A registry whose model has rules and labelled rows: the label is twice the input, and noise."""

    def __init__(self, uri: str, launcher: Launcher, folder: Path) -> None:
        super().__init__(uri, launcher, folder)
        self.published: list[Evidence] = []
        self.registry.client.create_registered_model("actor")
        x = np.linspace(1, 2, ROWS)
        self.rows = pd.DataFrame({"x": x, "target": 2 * x + np.random.default_rng(0).normal(0, 0.1, ROWS)})
        self.use(self.rows, folder)

    def use(self, rows: pd.DataFrame, folder: Path, target: str = "target") -> None:
        """Use these labelled rows, whose labels are in the column `target`."""
        path = folder / f"rows-{len(rows)}.parquet"
        rows.to_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.tag("serving.evaluation", f"{path}#sha256={digest}&target={target}")

    def tag(self, name: str, value: str) -> None:
        self.registry.client.set_registered_model_tag("actor", name, value)

    def evaluating(
        self, outcomes: RecordedOutcomes | None = None, primary: Follower | None = None, **settings: Any
    ) -> Follower:
        """Return a follower that evaluates versions, and compares them with those of a primary one."""
        follower = self.follow(**settings)

        async def read(model: str, days: int, column: str) -> RecordedOutcomes:
            assert outcomes
            assert column in outcomes.table.column_names
            return outcomes

        def publish(loaded: LoadedModel, evidence: Evidence) -> None:
            self.published.append(evidence)

        self.watch = RuleWatch(follower._registry, ("serving.require", "serving.evaluation"), [follower])
        follower._gate.checks = [
            EvaluationCheck(
                follower._settings,  # type: ignore[arg-type]
                follower._registry,
                lambda slot: primary.slot if primary else slot,
                publish,
                read if outcomes else None,
                watch=self.watch.record,
            )
        ]
        return follower


@pytest.fixture
async def harness(registry: str, launcher: Launcher, tmp_path: Path) -> AsyncIterator[EvaluationHarness]:
    evaluating = EvaluationHarness(registry, launcher, tmp_path)
    yield evaluating
    await evaluating.aclose()


def decisions(evidence: Evidence) -> Sequence[str]:
    return [str(result.decision) for result in evidence.results]


async def test_first_version_meets_only_absolute_rules(harness: EvaluationHarness) -> None:
    harness.tag("serving.require", "rmse <= 0.12; rmse <= 1.1 * champion")
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    assert live(follower) == "1"
    assert decisions(harness.published[0]) == ["holds", "no champion"]
    assert "because no version is live" in harness.tags("1")["serving.reason"]


async def test_worse_version_is_rejected_without_a_process_at_the_next_attempt(
    harness: EvaluationHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    harness.tag("serving.require", "rmse <= 1.1 * champion")
    worse = harness.promote(factor=2.2)
    await settle(follower)
    assert (live(follower), harness.tags(worse)["serving.state"]) == ("1", "rejected")
    first = harness.tags(worse)["serving.reason"]
    assert "rmse <= 1.1 * champion is required" in first
    monkeypatch.setattr(Evaluator, "evaluate", None)
    harness.registry.client.set_model_version_tag("actor", worse, "retry", "1")
    await settle(follower)
    assert harness.tags(worse)["serving.reason"] == first
    assert len(harness.published) == 1


async def test_rejected_version_is_tried_again_when_the_rules_change(harness: EvaluationHarness) -> None:
    harness.tag("serving.require", "rmse <= 0.01")
    follower = harness.evaluating()
    version = harness.promote(factor=2.0)
    await settle(follower)
    assert harness.tags(version)["serving.state"] == "rejected"
    before = follower.candidate
    await harness.watch.tick()
    assert follower.candidate is before  # the rules are the same
    harness.tag("serving.require", "rmse <= 0.12")
    await harness.watch.tick()
    await settle(follower)
    assert live(follower) == version
    await harness.watch.tick()
    assert follower.candidate is None


async def test_tag_comes_before_the_rows_of_the_version(harness: EvaluationHarness) -> None:
    """Test that a version cannot choose an easier test than the one of its model."""
    harness.tag("serving.require", "rmse <= 0.12")
    folder = save_scripted_model(harness.registry.folder, factor=3.0)
    (harness.rows.assign(target=3 * harness.rows["x"])).to_parquet(folder / "serving_evaluation.parquet")
    version = harness.registry.register("actor", folder)
    harness.registry.promote("actor", version)
    follower = harness.evaluating()
    await settle(follower)
    assert (live(follower), harness.tags(version)["serving.state"]) == (None, "rejected")
    harness.registry.client.delete_registered_model_tag("actor", "serving.evaluation")
    harness.registry.client.set_model_version_tag("actor", version, "retry", "1")
    await settle(follower)
    assert live(follower) == version
    assert json.loads(harness.published[-1].tag(5000))["source"] == "the version itself"


async def test_champion_after_a_restart_is_the_version_that_served_last(harness: EvaluationHarness) -> None:
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    await follower.unload("the service stops")
    harness.tag("serving.require", "rmse <= 1.1 * champion")
    worse = harness.promote(factor=2.2)
    restarted = harness.evaluating()
    await settle(restarted)
    assert live(restarted) == "1"
    assert restarted.candidate
    assert "actor version 1, with which its rules compare it, is not live yet" in restarted.candidate.reason
    harness.registry.client.set_model_version_tag("actor", worse, "retry", "1")
    await settle(restarted)
    assert (live(restarted), harness.tags(worse)["serving.state"]) == ("1", "rejected")


async def test_rollback_is_not_evaluated(harness: EvaluationHarness) -> None:
    follower = harness.evaluating()
    for factor in (2.0, 3.0):
        harness.promote(factor=factor)
        await settle(follower)
    harness.tag("serving.require", "rmse <= 0.0001")
    harness.registry.promote("actor", "1")
    await settle(follower)
    assert live(follower) == "1"
    assert harness.published == []


async def test_service_under_another_reference_is_no_evidence(harness: EvaluationHarness) -> None:
    staging = harness.evaluating(reference="models:/actor/Staging")
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    worse = harness.promote("Staging", factor=3.0)
    await settle(staging)
    assert live(staging) == worse
    harness.tag("serving.require", "rmse <= 1.1 * champion")
    harness.registry.promote("actor", worse)
    await settle(follower)
    assert live(follower) == "1"
    assert decisions(harness.published[-1]) == ["fails"]


async def test_challenger_waits_for_the_champion(harness: EvaluationHarness) -> None:
    harness.tag("serving.require", "rmse <= 1.1 * champion")
    primary = harness.evaluating()
    challenger = harness.evaluating(reference="models:/actor@challenger", primary=primary)
    harness.registry.alias("actor", "challenger", harness.promote("Staging", factor=3.0))
    await settle(challenger)
    assert challenger.candidate
    assert "models:/actor/Production, with which its rules compare it, is not live" in (
        challenger.candidate.reason
    )
    harness.promote(factor=2.0)
    await settle(primary)
    harness.registry.client.set_model_version_tag("actor", "1", "retry", "1")
    await settle(challenger)
    assert live(challenger) is None
    assert harness.published[-1].champion == "actor version 2"


async def test_undecided_rule_is_a_warning_by_setting(harness: EvaluationHarness, tmp_path: Path) -> None:
    harness.tag("serving.require", "rmse <= 0.12")
    harness.use(harness.rows[:10], tmp_path)
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    assert live(follower) is None
    lenient = harness.evaluating(evaluation_warns=True)
    await settle(lenient)
    assert live(lenient) == "1"
    assert "not enough evidence for rmse <= 0.12" in lenient.slot.all_warnings[-1]
    assert harness.published[-1].statistics.metrics.keys() == {"mae", "rmse", "r2"}


async def test_correction_of_the_label_column_is_noticed(harness: EvaluationHarness, tmp_path: Path) -> None:
    harness.tag("serving.require", "rmse <= 0.12")
    rows = harness.rows.assign(other=0.0)
    harness.use(rows, tmp_path, "other")
    follower = harness.evaluating()
    version = harness.promote(factor=2.0)
    await settle(follower)
    assert harness.tags(version)["serving.state"] == "rejected"
    harness.use(rows, tmp_path)
    await harness.watch.tick()
    await settle(follower)
    assert live(follower) == version


@pytest.mark.parametrize(
    ("champion", "fault"),
    [
        ({"on_large": "raise:broken"}, "cannot be evaluated on these rows: it raised ValueError: broken"),
        ({"on_large": "kill"}, "cannot be evaluated on these rows"),
        ({"on_load": "once:{folder}/note"}, "could not be loaded once more"),
        ({"on_load": "stop_once:{folder}/pass"}, "could not be loaded once more"),
    ],
)
async def test_fault_of_the_champion_does_not_concern_absolute_rules(
    harness: EvaluationHarness, tmp_path: Path, champion: dict[str, str], fault: str
) -> None:
    follower = harness.evaluating(evaluation_warns=True)
    (tmp_path / "pass").touch()
    harness.promote(factor=2.0, **{name: act.format(folder=tmp_path) for name, act in champion.items()})
    await settle(follower)
    (tmp_path / "pass").unlink()
    harness.use(pd.concat([pd.DataFrame({"x": [200.0], "target": [400.0]}), harness.rows]), tmp_path)
    harness.tag(
        "serving.require", "rmse <= 0.2; rmse <= champion + 0.1; p95_ms <= 5000; p95_ms <= 100 * champion"
    )
    version = harness.promote(factor=2.0)
    await settle(follower)
    assert live(follower) == version
    assert decisions(harness.published[-1]) == [
        "holds",
        "not enough evidence",
        "holds",
        "not enough evidence",
    ]
    assert f"the champion, actor version 1, {fault}" in harness.published[-1].results[1].sentence


async def test_rows_that_do_not_fit_the_signature_are_named(
    harness: EvaluationHarness, tmp_path: Path
) -> None:
    harness.tag("serving.require", "rmse <= 0.12")
    harness.use(harness.rows.rename(columns={"x": "y"}), tmp_path)
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    assert "do not fit its signature: x: Field required" in harness.tags("1")["serving.reason"]


async def test_model_that_fails_on_a_row_is_rejected(harness: EvaluationHarness, tmp_path: Path) -> None:
    harness.tag("serving.require", "rmse <= 0.12")
    harness.use(harness.rows.assign(act="raise:broken"), tmp_path)
    follower = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(follower)
    assert (
        "cannot be evaluated on its labelled rows: it raised ValueError: broken"
        in (harness.tags("1")["serving.reason"])
    )


async def test_recorded_outcomes_are_labelled_rows(harness: EvaluationHarness) -> None:
    harness.tag("serving.require", "rmse <= 0.12")
    harness.tag("serving.evaluation", "journal:7d")
    without = harness.evaluating()
    harness.promote(factor=2.0)
    await settle(without)
    assert "SERVING_JOURNAL_URL is not set" in harness.tags("1")["serving.reason"]
    await without.unload("the test needs another")
    # An input of the model may have the default name of the column of the labels.
    rows = harness.rows.rename(columns={"target": OUTCOME}).assign(target="an input")
    follower = harness.evaluating(RecordedOutcomes(pa.Table.from_pandas(rows), "sha256:0"))
    await settle(follower)
    assert live(follower) == "1"
    assert json.loads(harness.published[0].tag(5000))["source"] == "journal:7d"
