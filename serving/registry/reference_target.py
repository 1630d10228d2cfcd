"""Point a reference, which is an alias or a stage, at another version."""

from __future__ import annotations

from functools import partial
from typing import Any

from serving.errors import ReferenceNotFound, RegistryRejected
from serving.reference import Reference, ReferenceKind
from serving.registry import version_search
from serving.registry.mlflow_errors import map_exceptions


def point(reference: Reference, version: str, expected: str | None, client: Any) -> None:
    """Point a reference at a version, unless it names it already; a stage loses its other versions.

    MLflow has no conditional write: a change by another client between the read and the write is lost.

    Args:
        reference: an alias or a stage.
        version: the number of the version.
        expected: the number of the version that the reference must name before.
        client: MLflow's client.

    Raises:
        RegistryRejected: the reference names a version that is not expected.
        ReferenceNotFound: the version does not exist.
        RegistryUnavailable: the registry did not accept the change.
    """
    with map_exceptions(str(reference)):
        named = _named(reference, client)
        if named == version:
            return
        if named != expected:
            raise RegistryRejected(
                f"{reference} names {f'version {named}' if named else 'no version'} meanwhile"
            )
        if reference.kind is ReferenceKind.ALIAS:
            client.set_registered_model_alias(reference.name, reference.selector, version)
        else:
            client.transition_model_version_stage(
                reference.name, version, reference.selector, archive_existing_versions=True
            )


def _named(reference: Reference, client: Any) -> str | None:
    """Return the number of the version that a reference names; None without one."""
    try:
        first, *_ = version_search.named(client, reference, partial(version_search.search, client))
    except ReferenceNotFound:
        return None
    return str(int(first.version))
