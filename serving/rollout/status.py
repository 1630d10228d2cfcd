"""What is tried beside what is live, and how `/ready` tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import BaseModel, Field

from serving.http.readiness import StatusPart
from serving.models.slot import Slot
from serving.rollout.canary import Canary
from serving.rollout.comparison import ComparisonStats
from serving.rollout.shadow import Shadow


class CanaryState(BaseModel):
    """How a reference stands that shares the requests to its model with others."""

    share: float = Field(description="part of the requests that it is meant to get, between 0 and 1")
    state: str = Field(description="first, waiting, rising, steady, or stopped")
    reason: str


class ShadowState(BaseModel):
    """How a version that is tried answers what the live one was asked."""

    live: str | None = Field(description="the version that it is compared with")
    reason: str = Field(description="why it is not compared, where it is not")
    rows: int = Field(description="rows that both answered")
    agreement: float | None = Field(description="share with the same answer, numbers within one percent")
    differences: dict[str, float] | None = Field(
        description="quantiles of the last rows' differences, from 0 (the same) to 1"
    )
    latency: float | None = Field(description="median time of its calls as a ratio to the live version's")
    failed: int = Field(description="rows that it failed on")
    dropped: int = Field(description="rows that were left out for want of time or room")


class RolloutFields(BaseModel):
    """The fields of a model's state."""

    canary: CanaryState | None = Field(None, description="of references that share a model by weight")
    shadow: ShadowState | None = Field(None, description="of a reference that is a shadow")


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Canaries and shadows."""

    canaries: Sequence[Canary]
    shadows: Sequence[Shadow]

    @property
    def all(self) -> tuple[Canary | Shadow, ...]:
        """Each of them."""
        return *self.canaries, *self.shadows

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return the state of the canary or shadow that a slot belongs to."""
        canary = next((each for each in self.canaries if slot in each.split.slots), None)
        shadow = next((each for each in self.shadows if each.slot is slot), None)
        return StatusPart(
            RolloutFields(
                canary=CanaryState(**asdict(canary.standing(slot))) if canary else None,
                shadow=_shadow_state(shadow) if shadow else None,
            )
        )


def _shadow_state(shadow: Shadow) -> ShadowState:
    pair = shadow.pair
    tally = pair.tally if pair else ComparisonStats()
    quantiles = {f"p{share:g}": tally.quantile(share / 100) for share in (50, 95, 99, 100)}
    return ShadowState(
        live=pair.live.version.version if pair else None,
        reason=pair.reason if pair else "",
        rows=tally.rows,
        agreement=tally.agreement,
        differences={name: found for name, found in quantiles.items() if found is not None} or None,
        latency=tally.latency,
        failed=tally.failed,
        dropped=tally.dropped,
    )
