"""Registers canaries and shadows with the service."""

from __future__ import annotations

from serving.feature_interface import Core, Feature, Task
from serving.http.readiness import StatusSource
from serving.rollout.canary import Canary
from serving.rollout.shadow import Shadow
from serving.rollout.status import RolloutFields, Rollouts


def create(core: Core) -> list[Feature]:
    """Return a canary for each model with weighted references, and a shadow for each shadow reference."""
    models, main = core.models, core.models.named()
    rollouts = Rollouts(
        [
            Canary(split, core.settings, core.tag_writer, core.registry, core.outcomes)
            for split in models.splits.values()
        ],
        [
            Shadow(slot, main[slot.reference.name], core.tag_writer)
            for slot in models.slots
            if slot.reference in core.settings.shadow
        ],
    )
    return [
        Feature(
            hooks=rollouts.all,
            collectors=rollouts.all,
            tasks=[
                *(Task("canary", canary.run) for canary in rollouts.canaries),
                *(Task("shadow", shadow.run) for shadow in rollouts.shadows),
            ],
            status=StatusSource(RolloutFields, rollouts.status),
        )
    ]
