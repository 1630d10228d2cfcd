"""Sign a version: download its artifacts, compute their digest, and write the tag `serving.approval`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from serving.approval import approvers, signature
from serving.approval.private_key import public_bytes
from serving.approval.signature import Approval, Subject
from serving.errors import InvalidReference
from serving.promotion_errors import DigestMismatch
from serving.reference import Reference
from serving.registry.artifact_policy import ArtifactPolicy
from serving.registry.artifact_store import ArtifactStore
from serving.registry.client import RegistryClient
from serving.settings import unity_catalog
from serving.settings.settings import Settings
from serving.version import Version


@dataclass(frozen=True, slots=True)
class Signer:
    """An approver with the private key."""

    name: str
    private: Any

    @property
    def key_id(self) -> str:
        """Return the id of the key."""
        return approvers.key_id(public_bytes(self.private))


def references_of(name: str, settings: Settings, chosen: Sequence[str]) -> list[Reference]:
    """Return the chosen references, or those in the settings that name the model.

    Raises:
        InvalidReference: a reference has no known form or names another model, or there is none.
    """
    references = [*map(Reference.parse, chosen)]
    if foreign := [str(reference) for reference in references if reference.name != name]:
        raise InvalidReference(f"{', '.join(foreign)}: the version belongs to the model {name}")
    references = references or [
        reference for reference in (*settings.models, *settings.on_demand) if reference.name == name
    ]
    if not references:
        raise InvalidReference(
            f"SERVING_MODELS has no reference to {name}: add --reference models:/{name}/Production, or the "
            "reference that is served"
        )
    if len(references) > signature.MAX_REFERENCES:
        raise InvalidReference(f"an approval is for at most {signature.MAX_REFERENCES} references")
    return references


async def approve(
    settings: Settings,
    reference: Reference,
    chosen: Sequence[str],
    signer: Signer,
    progress: Callable[[str], None],
) -> tuple[Version, Approval]:
    """Sign the version that a reference names now, and write the tag; return the version and the approval.

    Raises:
        InvalidReference: a reference has no known form, or there is none to approve the version for.
        RegistryError: the registry does not respond, or rejects the tag.
        Rejected: a front would reject the artifacts or the approval.
        ApproversFileError: the file of approvers in the settings cannot be read.
    """
    unity_catalog.check_reference(reference, settings.catalog)
    references = references_of(reference.name, settings, chosen)
    registry = RegistryClient(settings)
    try:
        progress("resolving the reference")
        version, _ = await registry.resolve(reference)
        progress(f"downloading {version}")
        digest = await _digest(settings, registry, await registry.complete(version))
        now = datetime.now(UTC)
        subject = Subject(version.name, version.version, digest, signature.canonical_reference(references[0]))
        approval = signature.create(signer.name, signer.key_id, subject, references, now)
        tag = signature.sign(approval, signer.private)
        if settings.approvers:
            _, approver = signature.verify(tag, subject, approvers.read(settings.approvers))
            signature.check_expiry(approval, approver, now, has_served=False)
        progress(f"writing the tag of {version}")
        await registry.write_tags(version, lambda present: {signature.TAG: tag})
        return version, approval
    finally:
        registry.close()


async def _digest(settings: Settings, registry: RegistryClient, version: Version) -> str:
    """Return the digest of the artifacts in the registry now, as a front computes it."""
    policy = ArtifactPolicy(settings)
    policy.check_source(version)
    settings.store_dir.mkdir(parents=True, exist_ok=True)
    # A new folder: copies from earlier downloads may differ from what the registry has now.
    with tempfile.TemporaryDirectory(dir=settings.store_dir, prefix="approving-") as folder:
        store = ArtifactStore(Path(folder), registry.uri)
        artifacts = await store.fetch(version, partial(registry.download, check=policy.check_folder))
    expected = version.tags.get("serving.digest")
    if expected and expected != artifacts.digest:
        raise DigestMismatch(
            f"its artifacts are not those that were registered: {artifacts.digest}, not {expected[:100]}"
        )
    return artifacts.digest
