"""Decisions about rules on labelled rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serving.evaluation.evidence import Evidence, rule_facts
from serving.evaluation.intervals import (
    paired_rate_interval,
    quantile_interval,
    rate_interval,
)
from serving.evaluation.rules import parse_rules
from serving.evaluation.samples import OutputKind, Sample, VersionSample, decode, encode
from serving.evaluation.sources import JournalSource, parse_source, read_file
from serving.evaluation.statistics_process import Statistics
from serving.evaluation.verdict import Decision, RuleResult, judge, summarize
from serving.promotion_errors import PromotionWaits

LEVEL = 0.95
VERSIONS, ROWS = 200, 5000


def rates(successes: Sequence[bool] | np.ndarray, classes: Sequence[str] = ("no", "yes")) -> VersionSample:
    """Return a version that predicts the first class where it succeeds."""
    predicted = np.where(np.asarray(successes), 0, 1)
    return VersionSample(OutputKind.CLASSES, [pa.array(predicted)], classes)


def sample(new: VersionSample, old: VersionSample | None = None, **columns: Sequence[object]) -> Sample:
    """Return rows that all have the label `no`."""
    labels = pa.array(["no"] * len(new.predicted[0]))
    return Sample(labels, {name: pa.array(values) for name, values in columns.items()}, new, old)


def decide(rules: str, of: Sample) -> list[Decision]:
    return [result.decision for result in judge(parse_rules(rules), of, LEVEL)]


def pairs(random: np.random.Generator, accuracy: float, disagreement: float) -> Sample:
    """Return a champion that is right in 90 % of the rows, and a candidate of another accuracy."""
    right = random.random(ROWS) < 0.9
    lost = (disagreement + 0.9 - accuracy) / 2
    chance = random.random(ROWS)
    new = np.where(right, chance > lost / 0.9, chance < (disagreement - lost) / 0.1)
    return sample(rates(new), rates(right))


def accepted(accuracy: float, disagreement: float) -> int:
    """Return how many of 200 versions of this accuracy hold the rule of non-inferiority."""
    random = np.random.default_rng(20)
    rule = "accuracy >= champion - 0.005"
    return sum(
        decide(rule, pairs(random, accuracy, disagreement)) == [Decision.HOLDS] for _ in range(VERSIONS)
    )


def test_versions_two_points_worse_are_rejected() -> None:
    assert accepted(0.88, 0.05) <= 0.01 * VERSIONS


def test_equal_versions_are_accepted() -> None:
    assert accepted(0.9, 0.008) >= 0.95 * VERSIONS


def test_bounds_of_rates_equal_published_ones() -> None:
    """Clopper and Pearson for 8 of 10 at 95 % two-sided; Tango (1998), table 3, at 95 % two-sided."""
    exact = rate_interval(8, 10, 0.975)
    assert (exact.low, exact.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert (rate_interval(0, 5, LEVEL).low, rate_interval(5, 5, LEVEL).high) == (0, 1)
    paired = paired_rate_interval(12, 2, 44, 0.975)
    assert paired.low < 10 / 44 < paired.high
    mirrored = paired_rate_interval(2, 12, 44, 0.975)
    assert (mirrored.low, mirrored.high) == pytest.approx((-paired.high, -paired.low))


def test_identical_versions_differ_less_with_more_rows() -> None:
    few, many = paired_rate_interval(0, 0, 50, LEVEL), paired_rate_interval(0, 0, 5000, LEVEL)
    assert few.low < -0.04
    assert -0.001 < many.low < 0


def test_perfect_scores_of_few_rows_are_no_proof() -> None:
    assert decide("accuracy >= 0.95; accuracy >= 0.96", sample(rates([True] * 60))) == [
        Decision.HOLDS,
        Decision.UNDECIDED,
    ]


def test_bounds_of_quantiles_are_order_statistics() -> None:
    values = np.arange(1.0, 101.0)
    interval = quantile_interval(values, 0.5, LEVEL)
    assert (interval.low, interval.high) == (42, 59)
    assert quantile_interval(values[:20], 0.95, LEVEL).high == np.inf


@pytest.mark.parametrize(
    ("rule", "decision"),
    [
        ("accuracy >= 0.85", Decision.HOLDS),
        ("accuracy >= 0.9", Decision.UNDECIDED),
        ("accuracy >= 0.95", Decision.FAILS),
        ("accuracy >= champion", Decision.SKIPPED),
        ("recall[no] >= 0.85", Decision.HOLDS),
        ("recall[yes] >= 0.5", Decision.UNDECIDED),
        ("precision[no] >= 0.99", Decision.HOLDS),
        ("recall[maybe] >= 0.5", Decision.FAILS),
        ("rmse <= 5", Decision.FAILS),
        ("p95_ms <= 5", Decision.UNDECIDED),
        ("accuracy[region=north] >= 0.99", Decision.HOLDS),
        ("accuracy[region=south] >= 0.85", Decision.FAILS),
        ("accuracy[region=west] >= 0.1", Decision.UNDECIDED),
        ("accuracy[country=x] >= 0.1", Decision.FAILS),
        ("accuracy[number=7] >= 0.99", Decision.HOLDS),
        ("accuracy[flag=true] >= 0.99", Decision.HOLDS),
    ],
)
def test_rule_is_decided_by_its_bounds(rule: str, decision: Decision) -> None:
    new = rates([True] * 900 + [False] * 100)
    region = ["north"] * 500 + ["south"] * 500
    flag = [True] * 500 + [False] * 500
    assert decide(rule, sample(new, region=region, number=[7.0] * 500 + [8.0] * 500, flag=flag)) == [decision]


def test_fault_of_the_champion_is_not_enough_evidence() -> None:
    of = Sample(pa.array(["no"]), {}, rates([True]), None, "the champion cannot be evaluated")
    (result,) = judge(parse_rules("accuracy >= champion"), of, LEVEL)
    assert result.decision is Decision.UNDECIDED
    assert "the champion cannot be evaluated" in result.sentence


def test_rule_without_a_row_that_counts_names_the_cause() -> None:
    chances = [pa.array([0.9, 0.8]), pa.array([0.1, 0.2])]
    version = VersionSample(OutputKind.PROBABILITIES, chances, ["no", "yes"])
    of = Sample(pa.array(["no", "no"]), {"region": pa.array(["north", "north"])}, version)
    rules = "recall[yes] >= 0.9; accuracy[region=west] >= 0.9; p95_ms <= 5"
    results = judge(parse_rules(rules), of, LEVEL)
    assert {result.decision for result in results} == {Decision.UNDECIDED}
    assert [result.sentence for result in results] == [
        "recall[yes] has no value on 2 rows (no row has the class), which is not enough evidence for "
        "recall[yes] >= 0.9",
        "accuracy[region=west] >= 0.9 has not enough evidence: there are no rows for accuracy[region=west]; "
        "region has the values north",
        "there are no timed calls for p95_ms, and so not enough evidence for p95_ms <= 5",
    ]


def test_factor_of_the_champion_scales_the_bound() -> None:
    random = np.random.default_rng(1)
    truth = random.normal(size=2000)
    candidate, champion = (
        VersionSample(OutputKind.NUMBER, [pa.array(truth + random.normal(scale=scale, size=2000))])
        for scale in (1.0, 1.0)
    )
    of = Sample(pa.array(truth), {}, candidate, champion)
    assert decide("rmse <= 1.1 * champion; rmse <= 0.8 * champion", of) == [Decision.HOLDS, Decision.FAILS]


def test_labels_may_be_names_or_ids_of_classes() -> None:
    for labels in (["a", "b", "b"], [0, 1, 1], [0.0, 1.0, 1.0]):
        version = VersionSample(OutputKind.CLASSES, [pa.array([0, 1, 0])], ["a", "b"])
        (result,) = judge(parse_rules("accuracy >= 0"), Sample(pa.array(labels), {}, version), LEVEL)
        assert result.value == pytest.approx(2 / 3), labels


def test_class_that_a_version_does_not_know_is_wrong() -> None:
    chances = [pa.array([0.9, 0.2, 0.3]), pa.array([0.1, 0.8, 0.7])]
    version = VersionSample(OutputKind.PROBABILITIES, chances, ["a", "b"])
    of = Sample(pa.array(["a", "b", "new"]), {}, version)
    accuracy, loss = judge(parse_rules("accuracy >= 0; log_loss <= 100"), of, LEVEL)
    assert accuracy.value == pytest.approx(2 / 3)
    assert loss.value is not None
    assert loss.value > 10


def test_values_without_task_are_classes_or_numbers() -> None:
    version = VersionSample(OutputKind.VALUE, [pa.array([1, 2, 3])])
    of = Sample(pa.array([1, 2, 2]), {}, version)
    accuracy, mae = judge(parse_rules("accuracy >= 0; mae <= 9"), of, LEVEL)
    assert accuracy.value == pytest.approx(2 / 3)
    assert mae.value == pytest.approx(1 / 3)


def test_negative_champion_has_no_factor() -> None:
    truth = np.random.default_rng(2).normal(size=400)
    version = VersionSample(OutputKind.NUMBER, [pa.array(np.full(400, 1.5))])
    of = Sample(pa.array(truth), {}, version, version)
    factor, offset = judge(parse_rules("r2 >= 0.98 * champion; r2 >= champion - 0.02"), of, LEVEL)
    assert factor.decision is Decision.UNDECIDED
    assert "a factor has no meaning for a negative value: write for example r2 >= champion" in factor.sentence
    assert offset.decision is Decision.HOLDS


def test_metric_without_value_is_not_in_the_evidence() -> None:
    version = VersionSample(OutputKind.NUMBER, [pa.array(np.full(60, 1.5))])
    of = Sample(pa.array(np.ones(60)), {}, version, version)
    (result,) = judge(parse_rules("r2 >= champion"), of, LEVEL)
    assert result.sentence == (
        "r2 has no value on 60 rows (all labels are equal), which is not enough evidence for r2 >= champion"
    )
    assert json.loads(json.dumps(rule_facts(result), allow_nan=False))["decision"] == "not enough evidence"
    infinite = RuleResult("r", Decision.FAILS, "", float("nan"), float("-inf"))
    assert not {"value", "champion"} & {*rule_facts(infinite)}


GAP = VersionSample(OutputKind.NUMBER, [pa.array([0.0] * 99 + [float("nan")])])
BYTES = VersionSample(OutputKind.VALUE, [pa.array([b"\xff"] * 100)])
ONLY_CLASSES = VersionSample(OutputKind.CLASSES, [pa.array([0] * 100)], ["a", "b"])


@pytest.mark.parametrize(
    ("rule", "old", "reason"),
    [
        ("rmse <= champion", GAP, "row 100 has"),
        ("accuracy >= champion", GAP, "needs a classifier"),
        ("roc_auc >= champion", ONLY_CLASSES, "needs probabilities"),
        ("accuracy >= champion", BYTES, "are no classes"),
    ],
)
def test_predictions_of_the_champion_are_no_fault_of_the_candidate(
    rule: str, old: VersionSample, reason: str
) -> None:
    labels = np.arange(100) % 2
    chances = [pa.array(1.0 - labels), pa.array(1.0 * labels)]
    new = VersionSample(OutputKind.PROBABILITIES, chances, ["a", "b"])
    if rule.startswith("rmse"):
        new = VersionSample(OutputKind.NUMBER, [pa.array(1.0 * labels)])
    (result,) = judge(parse_rules(rule), Sample(pa.array(labels), {}, new, old), LEVEL)
    assert result.decision is Decision.UNDECIDED
    assert "the champion's predictions cannot be compared" in result.sentence
    assert reason in result.sentence


def test_rows_outside_a_slice_need_no_prediction() -> None:
    new = VersionSample(OutputKind.NUMBER, [pa.array([1.0] * 60 + [float("nan")])])
    of = Sample(pa.array([1.1] * 61), {"region": pa.array(["north"] * 60 + ["south"])}, new)
    assert decide("rmse[region=north] <= 0.2; rmse[region=south] <= 0.2", of) == [
        Decision.HOLDS,
        Decision.FAILS,
    ]


def test_means_over_many_classes_are_not_in_the_summary() -> None:
    numbers = np.arange(20_000) % 1000
    new = VersionSample(OutputKind.CLASSES, [pa.array(numbers)], [f"class {index}" for index in range(1000)])
    of = Sample(pa.array(numbers), {}, new)
    assert dict(summarize(of, new)) == {"accuracy": 1.0}
    (result,) = judge(parse_rules("f1 >= 0.5"), of, LEVEL)
    assert result.value == pytest.approx(1)


def test_missing_prediction_is_reported() -> None:
    version = VersionSample(OutputKind.NUMBER, [pa.array([1.0, float("nan")])])
    (result,) = judge(parse_rules("mae <= 9"), Sample(pa.array([1, 2]), {}, version), LEVEL)
    assert "row 2 has a value or a prediction that is missing" in result.sentence


def test_sample_survives_its_encoding() -> None:
    of = sample(rates([True] * 99 + [False]), rates([True] * 100), region=["n"] * 100)
    rules = "accuracy >= 0.9; accuracy >= champion - 0.1; accuracy[region=n] >= 0.9"
    parsed = parse_rules(rules)
    assert judge(parsed, decode(*encode(of)), LEVEL) == judge(parsed, of, LEVEL)


def evidence(*decisions: Decision, may_be_undecided: bool = False, text: str = "x") -> Evidence:
    results = [RuleResult("r", decision, f"{text} {decision}", 0.5) for decision in decisions]
    statistics = Statistics(results, {}, {})
    return Evidence(
        statistics, 10, "file.csv", "sha256:0", None, 0.95, may_be_undecided, "2026-11-28T00:00:00Z"
    )


def test_setting_lets_undecided_versions_go_live() -> None:
    undecided = Decision.HOLDS, Decision.UNDECIDED
    assert not evidence(*undecided).passed
    assert evidence(*undecided, may_be_undecided=True).passed
    assert evidence(*undecided, may_be_undecided=True).warning == "x not enough evidence"
    assert not evidence(*undecided, Decision.FAILS, may_be_undecided=True).passed
    assert evidence(Decision.HOLDS, Decision.SKIPPED).passed


def test_reason_names_only_the_rules_that_are_not_met() -> None:
    reason = evidence(Decision.HOLDS, Decision.FAILS).reason
    assert reason == "x fails (10 labelled rows from file.csv)"


@pytest.mark.parametrize("max_length", [1000, 5000])
def test_tag_stays_short(max_length: int) -> None:
    evaluated = replace(evidence(*[Decision.HOLDS] * 200), source="s3://bucket/" + "folder/" * 200)
    tag = evaluated.tag(max_length, "run")
    assert len(tag) <= max_length
    assert json.loads(tag)["rules_left_out"] > 0


@pytest.mark.anyio
async def test_reason_of_unreadable_rows_keeps_its_end(tmp_path: Path) -> None:
    with pytest.raises(PromotionWaits, match=r"No such file or directory.* … .*/rows\.csv"):
        await read_file(tmp_path / ("folder" * 40) / ("more" * 50) / "rows.csv", "rows", "")


def test_sources_are_parsed() -> None:
    digest = "ab" * 32
    source = parse_source(f" runs:/1/rows.csv#sha256={digest.upper()}&target=kind ")
    assert (source.uri, source.sha256, source.target) == ("runs:/1/rows.csv", digest, "kind")  # type: ignore[union-attr]
    assert parse_source("journal:7d") == JournalSource(7)


@pytest.mark.parametrize(
    "text",
    ["", "rows.csv", "rows.csv#sha256=12", f"#sha256={'a' * 64}", f"a#sha256={'a' * 64}&x=1", "journal:d"],
)
def test_source_without_digest_waits(text: str) -> None:
    with pytest.raises(PromotionWaits, match="cannot be read"):
        parse_source(text)
