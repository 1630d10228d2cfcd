"""Settings of the evaluation of promoted versions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from serving.settings.groups import SettingsGroup
from serving.settings.parsing import lowercase


class EvaluationSettings(SettingsGroup):
    """Evaluation of promoted versions on labelled rows."""

    evaluation_confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="confidence with which the labelled rows must support each rule in serving.require",
    )
    evaluation_insufficient: Annotated[Literal["reject", "warn"], BeforeValidator(lowercase)] = Field(
        "reject",
        description="what happens to a version if the labelled rows are not enough evidence for a rule: "
        "reject, or warn and go live",
    )
