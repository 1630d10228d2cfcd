"""The state of canaries and shadows in `/ready`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import BaseModel, Field

from serving.http.readiness import StatusPart
from serving.models.slot import Slot
from serving.rollout.canary import Canary
from serving.rollout.comparison import ComparisonStats
from serving.rollout.shadow import Shadow


class OutcomeState(BaseModel):
    """The outcomes of a canary step; a loss is between 0 and 1, and 1 for a wrong class."""

    verdict: str = Field(description="waiting, harmless or harmful")
    challenger_outcomes: int
    champion_outcomes: int
    challenger_loss: float | None
    champion_loss: float | None
    difference_low: float = Field(description="lower bound of the challenger's loss minus the champion's")
    difference_high: float = Field(description="upper bound of the challenger's loss minus the champion's")
    margin: float
    max_error: float | None = Field(description="absolute error of a number whose loss is 1")


class CanaryState(BaseModel):
    """The state of a reference that shares the requests to its model with others."""

    share: float = Field(description="intended share of the requests, between 0 and 1")
    state: str = Field(description="first, waiting, rising, steady, stopped or promoted")
    reason: str
    outcomes: OutcomeState | None = Field(
        None,
        exclude_if=lambda outcomes: outcomes is None,
        description="outcomes of the present step; absent without feedback",
    )


class ShadowState(BaseModel):
    """The comparison of a shadow with the live version."""

    live: str | None = Field(description="the version that it is compared with")
    reason: str = Field(description="why it is not compared; empty if it is")
    rows: int = Field(description="rows for which both versions returned a prediction")
    agreement: float | None = Field(
        description="share of rows with the same prediction, numbers within one percent"
    )
    differences: dict[str, float] | None = Field(
        description="quantiles of the last rows' differences, from 0 (the same) to 1"
    )
    latency: float | None = Field(description="median time of its calls as a ratio to the live version's")
    failed: int = Field(description="rows on which the shadow failed")
    dropped: int = Field(description="rows that were not mirrored for lack of time or space")


class RolloutFields(BaseModel):
    """The fields of a model's state."""

    canary: CanaryState | None = Field(None, description="for references that share a model by weight")
    shadow: ShadowState | None = Field(None, description="for a shadow reference")


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Canaries and shadows."""

    canaries: Sequence[Canary]
    shadows: Sequence[Shadow]

    @property
    def all(self) -> tuple[Canary | Shadow, ...]:
        """Return the canaries and the shadows."""
        return *self.canaries, *self.shadows

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return the state of the canary or shadow that a slot belongs to."""
        canary = next((canary for canary in self.canaries if slot in canary.split.slots), None)
        shadow = next((shadow for shadow in self.shadows if shadow.slot is slot), None)
        return StatusPart(
            RolloutFields(
                canary=CanaryState(**asdict(canary.standing(slot))) if canary else None,
                shadow=_shadow_state(shadow) if shadow else None,
            )
        )


def _shadow_state(shadow: Shadow) -> ShadowState:
    pair = shadow.pair
    stats = pair.stats if pair else ComparisonStats()
    quantiles = {f"p{share:g}": stats.quantile(share / 100) for share in (50, 95, 99, 100)}
    return ShadowState(
        live=pair.live.version.version if pair else None,
        reason=pair.reason if pair else "",
        rows=stats.rows,
        agreement=stats.agreement,
        differences={name: value for name, value in quantiles.items() if value is not None} or None,
        latency=stats.latency,
        failed=stats.failed,
        dropped=stats.dropped,
    )
