"""The evidence of an evaluation: its text for people, and the JSON of the tag `serving.evaluation`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.evaluation.statistics_process import Statistics
from serving.evaluation.verdict import Decision, RuleResult
from serving.text import shorten

TAG = "serving.evaluation"
_MAX_TEXT_LENGTH, _MAX_SOURCE_LENGTH = 2000, 200
_DIGITS = 6


@dataclass(frozen=True)
class Evidence:
    """The result of the evaluation of a version.

    Args:
        statistics: the decisions about the rules, and metrics.
        rows: number of labelled rows.
        source: where they come from.
        data_digest: identifies their content.
        champion: the version that was live; None if there was none.
        confidence: the confidence level.
        may_be_undecided: whether a version goes live without enough evidence for a rule.
        at: the time in ISO 8601.
    """

    statistics: Statistics
    rows: int
    source: str
    data_digest: str
    champion: str | None
    confidence: float
    may_be_undecided: bool
    at: str

    @property
    def results(self) -> Sequence[RuleResult]:
        """The decisions about the rules."""
        return self.statistics.results

    @property
    def obstacles(self) -> list[RuleResult]:
        """The rules that keep the version from going live."""
        allowed = {Decision.HOLDS, Decision.SKIPPED}
        if self.may_be_undecided:
            allowed.add(Decision.UNDECIDED)
        return [result for result in self.results if result.decision not in allowed]

    @property
    def passed(self) -> bool:
        """Whether the version may go live."""
        return not self.obstacles

    @property
    def reason(self) -> str:
        """The sentences of the rules that keep the version from going live, or of all rules."""
        texts = "; ".join(result.sentence for result in self.obstacles or self.results)
        return shorten(f"{texts} ({self._basis})", _MAX_TEXT_LENGTH)

    @property
    def summary(self) -> str:
        """The sentence about a version that goes live."""
        bounds = f"with {100 * self.confidence:.4g} % bounds"
        return f"it meets its rules, {bounds}: {self.reason}"

    @property
    def warning(self) -> str:
        """The sentences of undecided rules; empty if there are none."""
        texts = [result.sentence for result in self.results if result.decision is Decision.UNDECIDED]
        return shorten("; ".join(texts), _MAX_TEXT_LENGTH)

    @property
    def _basis(self) -> str:
        against = f", compared with {self.champion}" if self.champion else ""
        return f"{self.rows:,} labelled rows from {self.source}{against}"

    def facts(self, run_id: str | None = None) -> dict[str, Any]:
        """Return the evidence in JSON types."""
        return {
            "passed": self.passed,
            "at": self.at,
            "rows": self.rows,
            "source": self.source,
            "digest": self.data_digest,
            "champion": self.champion,
            "confidence": self.confidence,
            **({"run_id": run_id} if run_id else {}),
            "rules": [rule_facts(result) for result in self.results],
        }

    def tag(self, max_length: int, run_id: str | None = None) -> str:
        """Return the text of the tag; if it is too long, the last rules are missing and counted."""
        facts = self.facts(run_id) | {"source": shorten(self.source, _MAX_SOURCE_LENGTH)}
        while len(text := json.dumps(facts)) > max_length and facts["rules"]:
            facts["rules"].pop()
            facts["rules_left_out"] = facts.get("rules_left_out", 0) + 1
        return text


def rule_facts(result: RuleResult) -> dict[str, Any]:
    """Return a decision in JSON types; values that do not exist are absent."""
    facts: dict[str, Any] = {"rule": result.rule, "decision": str(result.decision)}
    for name in ("value", "champion", "low", "high"):
        if (value := getattr(result, name)) is not None and math.isfinite(value):  # JSON has no NaN
            facts[name] = float(f"{value:.{_DIGITS}g}")
    return facts | {"method": result.method, "rows": result.rows}
