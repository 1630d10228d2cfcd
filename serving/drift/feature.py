"""Registers drift with the service."""

from __future__ import annotations

from serving.drift.monitor import Drift, DriftFields
from serving.feature_interface import Core, Feature, Task
from serving.http.readiness import StatusSource


def create(core: Core) -> list[Feature]:
    """Return the feature; without `SERVING_DRIFT_PSI` it only has its field in `/ready`, which is null."""
    if not core.settings.drift_psi:
        return [Feature(status=StatusSource(DriftFields))]
    drift = Drift(core.settings.drift_psi)
    return [
        Feature(
            hooks=[drift],
            collectors=[drift],
            tasks=[Task("drift", drift.run)],
            status=StatusSource(DriftFields, drift.status),
        )
    ]
