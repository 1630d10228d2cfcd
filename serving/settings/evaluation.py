"""Settings of the evaluation of promoted versions."""

from __future__ import annotations

from pydantic import Field

from serving.settings.groups import SettingsGroup


class EvaluationSettings(SettingsGroup):
    """Evaluation of promoted versions on labelled rows."""

    evaluation_confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="confidence with which the labelled rows must support each rule in serving.require",
    )
    evaluation_warns: bool = Field(
        False,
        description="let a version go live with a warning if the labelled rows are not enough evidence for a "
        "rule; default: reject it",
    )
