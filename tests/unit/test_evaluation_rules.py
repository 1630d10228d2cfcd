"""The grammar of rules in the tag `serving.require`."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from serving.codecs.model_input import stream
from serving.evaluation import statistics_process
from serving.evaluation.rules import InvalidRule, Quantity, parse_rules, resolve
from serving.evaluation.samples import OutputKind, Sample, VersionSample, encode


def quantity(text: str) -> Quantity:
    (rule,) = parse_rules(f"{text} >= 0.5")
    assert rule.text == f"{text} >= 0.5"
    return rule.quantity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recall[virginica]", Quantity("recall", "virginica")),
        ("recall[ a b ]", Quantity("recall", "a b")),
        ("recall['a b']", Quantity("recall", "a b")),
        ('recall["<=50K"]', Quantity("recall", "<=50K")),
        ('recall["[0,10)"]', Quantity("recall", "[0,10)")),
        ('recall[ "a;b" , region = north ]', Quantity("recall", "a;b", (("region", "north"),))),
        ('recall["a\nb"]', Quantity("recall", "a\nb")),
        ("recall['it''s']", Quantity("recall", "it's")),
        ('f1["say ""a"""]', Quantity("f1", 'say "a"')),
        ('accuracy[region="a, b"]', Quantity("accuracy", None, (("region", "a, b"),))),
        ('accuracy["a=b"="c"]', Quantity("accuracy", None, (("a=b", "c"),))),
        ("accuracy[a=b=c]", Quantity("accuracy", None, (("a", "b=c"),))),
        (
            "accuracy[name=O'Brien, size=5\"]",
            Quantity("accuracy", None, (("name", "O'Brien"), ("size", '5"'))),
        ),
    ],
)
def test_names_may_be_quoted(text: str, expected: Quantity) -> None:
    assert quantity(text) == expected
    assert quantity(str(expected)) == expected


def test_separators_in_quotes_do_not_separate_rules() -> None:
    rules = parse_rules("recall['a;b'] >= 0.5; accuracy[x=\"c\nd\"] >= 0.6\n\nf1 >= 0.7;")
    assert [rule.offset for rule in rules] == [0.5, 0.6, 0.7]


@pytest.mark.parametrize("name", ["<=50K", ">=50K"])
def test_class_may_look_like_a_slice(name: str) -> None:
    rules = parse_rules(f"recall[{name}] >= 0.5")
    (as_class,) = resolve(rules, ["region"], [name])
    assert as_class.quantity == quantity(f'recall["{name}"]')
    assert resolve(rules, [name[0]], [name]) == rules
    assert resolve(rules, [], ["other"]) == rules


def test_class_that_looks_like_a_slice_may_have_a_slice() -> None:
    (rule,) = resolve(
        parse_rules("recall[region=north, <=50K] >= 0.5"), ["region"], ["<=50K", "region=north"]
    )
    assert rule.quantity == Quantity("recall", "<=50K", (("region", "north"),))


@pytest.mark.parametrize("text", ['recall["a"=b]', "recall[x, a=b]", "accuracy[a=b]"])
def test_slice_stays_a_slice(text: str) -> None:
    rules = parse_rules(f"{text} >= 0.5")
    assert resolve(rules, [], ["a=b"]) == rules


def test_class_that_looks_like_a_slice_is_judged() -> None:
    predicted = pa.array([0, 1] * 50)
    version = VersionSample(OutputKind.CLASSES, [predicted], ["<=50K", ">50K"])
    facts, table = encode(Sample(pa.array(["<=50K", ">50K"] * 50), {}, version))
    head = json.dumps({"rules": "recall[<=50K] >= 0.5", "level": 0.95, "sample": facts}).encode()
    (result,) = json.loads(statistics_process._judge(head + b"\n" + stream(table)))["results"]
    assert (result["decision"], result["value"], result["rows"]) == ("holds", 1.0, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no rule"),
        (" ; \n", "contains no rule"),
        ("f1 >= 0;" * 21, "contains 21 rules"),
        ("f1 >= 0; accuracy > 0.9", r"'accuracy > 0.9' is not a rule: write a metric.* \(character 19\)"),
        ("f1 >= 0\n  foo >= 1", r"'foo >= 1' has an unknown metric.* \(character 11\)"),
        ("recall[[0,10)] >= 0.5", r"close the bracket, and quote .* \(character 7\)"),
        ("recall[a;b] >= 0.5", r"'recall\[a' is not a rule: close the bracket.* \(character 7\)"),
        ("recall[a,b] >= 0.5", r"invalid part in brackets.* \(character 10\)"),
        ("recall[a,] >= 0.5", r"invalid part in brackets.* \(character 10\)"),
        ("accuracy[] >= 0.5", r"invalid part in brackets.* \(character 10\)"),
        ("accuracy[a=b, a=c] >= 0.5", r"invalid part in brackets.* \(character 14\)"),
        ('recall["a] >= 0.5', r"a quote that is not closed.* \(character 8\)"),
        ("recall[x='a'b] >= 0.5", r"a quote that is not closed.* \(character 10\)"),
        ("p95_ms[a=b] <= 5", r"latencies have no slices \(character 8\)"),
        ("rmse >= 3", r"wrong direction: rmse needs <= \(character 6\)"),
        ("accuracy >= 1x", r"an invalid bound.* \(character 13\)"),
        ("accuracy >= -1 * champion", r"by a positive number \(character 13\)"),
        ("accuracy >= 93", r"range of accuracy, 0 to 1: write for example accuracy >= 0.93 \(character 13\)"),
        ("accuracy >= -0.1", "write for example accuracy >= 0.9"),
        ("recall[a] >= 1.01", "range of recall, 0 to 1"),
        ("calibration_error <= 5", "write for example calibration_error <= 0.05"),
        ("brier_score <= 2.1", "range of brier_score, 0 to 2"),
        ("r2 >= 2", "range of r2, at most 1: write for example r2 >= 0.9"),
        ("rmse <= -1", "range of rmse, at least 0: write for example rmse <= 0.1"),
        ("accuracy >= champion - 5", "more than 1, the range of accuracy: .* accuracy >= champion - 0.005"),
        ("calibration_error <= 1.1 * champion + 2", "for example calibration_error <= champion \\+ 0.005"),
    ],
)
def test_invalid_rule_is_reported(text: str, message: str) -> None:
    with pytest.raises(InvalidRule, match=message):
        parse_rules(text)


@pytest.mark.parametrize(
    "text", ["rmse <= 93", "r2 >= -5", "log_loss <= 12", "p95_ms <= 200", "rmse <= champion + 50", "f1 >= 1"]
)
def test_bounds_within_the_range_are_valid(text: str) -> None:
    assert len(parse_rules(text)) == 1
