"""Settings of shadows and canaries."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from serving.settings.groups import References, SettingsGroup
from serving.settings.parsing import parse_list


class OutcomeSettings(SettingsGroup):
    """Decisions of canaries by recorded outcomes."""

    canary_margin: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="with outcomes, a canary step ends when its loss is proven to exceed the primary's by "
        "less than this",
    )
    canary_confidence: float = Field(
        0.95, ge=0.5, lt=1, description="confidence of proofs from outcomes over all steps of a canary"
    )
    canary_max_error: float | None = Field(
        None,
        gt=0,
        description="absolute error of a number that counts as a loss of 1; default: three times the root "
        "mean squared error of the primary's earlier outcomes",
    )
    canary_min_outcomes: int = Field(
        0,
        ge=0,
        description="outcomes of each version that a canary step waits for; 0 waits only if outcomes arrive",
    )
    canary_promote: bool = Field(
        False, description="after its last step, point the primary reference at the canary's version"
    )


class RolloutSettings(OutcomeSettings):
    """Trials of a version on live requests before its promotion."""

    shadow: References = Field(
        (),
        description="references to run in shadow: live requests are mirrored to them and the predictions are "
        "compared",
    )
    sticky_header: str | None = Field(
        None,
        description="header whose value selects one of several weighted references; default: random",
    )
    canary_steps: Annotated[tuple[float, ...], NoDecode, BeforeValidator(parse_list)] = Field(
        (),
        description="rising percentages of traffic for the second of two weighted references: 5,25,50",
    )
    canary_seconds: float = Field(300.0, gt=0, description="minimum duration of one canary step")
    canary_max_error_rate: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="stop the canary when its error rate exceeds the primary's by this share of requests",
    )
    canary_max_latency_ratio: float = Field(
        2.0, gt=1, description="stop the canary when its p95 latency exceeds the primary's by this factor"
    )

    @property
    def sticky(self) -> bytes | None:
        """Return the name of the sticky header as the server passes it: lower-case bytes."""
        return self.sticky_header.lower().encode() if self.sticky_header else None
