"""Load and verify a version as the service does, without serving it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.processes.launcher import Launcher
from serving.reference import Reference
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.registry.gate import Gate
from serving.registry.registry_identity import registry_identity
from serving.settings import unity_catalog
from serving.settings.settings import Settings
from serving.telemetry.metrics import Metrics

Prepare = Callable[[RegistryClient, Gate, str | None], Awaitable[LoadedModel | None]]
"""Adds checks of a feature to the gate, for the version of this number.

It returns the version that it has loaded for them, if any.
"""


async def check_reference(
    settings: Settings,
    reference: Reference,
    progress: Callable[[str], None],
    prepare: Prepare | None = None,
) -> LoadedModel:
    """Resolve a reference, then load and verify its version; return the version with its processes ended.

    Raises:
        InvalidReference: the registry has no references of this form.
        Rejected: the version would not go live.
        PromotionWaits: the version has no approval.
        ApproversFileError: the file of approvers cannot be read.
        PromotionWaits: the version would not go live yet, because of a check that `prepare` has added.
        RegistryError: the version cannot be checked.
    """
    unity_catalog.check_reference(reference, settings.catalog)
    registry = RegistryClient(settings)
    launcher = Launcher.from_settings(settings, settings)
    gate = Gate(
        settings,
        registry,
        ArtifactStore(settings.store_dir, registry_identity(settings)),
        launcher,
        Metrics(),
    )
    other: LoadedModel | None = None
    try:
        if settings.approvers:
            from serving.approval.feature import approval_check  # the feature may be absent

            gate.checks = [approval_check(settings, registry, ())]
        launcher.start()
        progress("resolving the reference")
        version, _ = await registry.resolve(reference)
        if prepare:
            other = await prepare(registry, gate, version.version)
        progress(f"loading and verifying {version}")
        loaded = await gate.load_and_verify(version, Slot(reference))
        loaded.close()
        return loaded
    finally:
        if other:  # before the launcher, or its processes would be restarted
            other.close()
        await launcher.aclose()
        registry.close()
