"""Names of metrics and labels that PromQL expressions use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
PROMETHEUS = DEPLOY / "prometheus"
ALERTS = PROMETHEUS / "alerts.yaml"
_IN_LEGEND = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Asked:
    """The metrics and labels of one expression."""

    expr: str
    names: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    """Labels that it groups, matches or shows by."""
    matched: set[tuple[str, str, str]] = field(default_factory=set)
    """Labels that it selects by: of which metric, and the value."""


def asked(expr: str, shown: Iterable[str]) -> Asked:
    """Return the metrics and labels that an expression uses, and the labels that are shown."""
    uses = Asked(expr, labels={*shown})

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            name = str(node.name)
            uses.names.add(name)
            uses.matched.update((name, matcher.name, matcher.value) for matcher in node.matchers.matchers)
        modifier = getattr(node, "modifier", None)
        if isinstance(modifier, promql_parser.AggModifier):
            uses.labels.update(modifier.labels)
        elif isinstance(modifier, promql_parser.BinModifier) and modifier.matching:
            uses.labels.update(modifier.matching.labels)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return uses


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def in_words(rule: dict[str, Any]) -> set[str]:
    """Return the labels in an alert's annotations."""
    return {*re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))}


def cases() -> list[dict[str, Any]]:
    """Return the test cases of the alerts."""
    tests: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    return tests


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard, without the titles of its rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def filled(expr: str) -> str:
    """Return an expression of the dashboard as Grafana sends it, for all models."""
    return expr.replace("$__rate_interval", "1m").replace("$model", ".*")


def of_dashboard() -> Iterator[Asked]:
    """Yield the expressions of the dashboard."""
    board = json.loads(DASHBOARD.read_text())
    for panel in panels():
        for target in panel["targets"]:
            yield asked(filled(target["expr"]), _IN_LEGEND.findall(target["legendFormat"]))
    for annotation in board["annotations"]["list"]:
        yield asked(filled(annotation["expr"]), _IN_LEGEND.findall(annotation["titleFormat"]))
    for variable in board["templating"]["list"]:
        if values := re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", "")):
            yield asked(values[1], [values[2]])


def of_alerts() -> Iterator[Asked]:
    """Yield the expressions of the alerts."""
    for rule in rules():
        yield asked(rule["expr"], in_words(rule))
