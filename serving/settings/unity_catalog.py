"""Unity Catalog as the model registry: which one the settings name, and which references it supports."""

from __future__ import annotations

from enum import StrEnum

from serving.errors import InvalidReference
from serving.reference import Reference, ReferenceKind


class Catalog(StrEnum):
    """A kind of Unity Catalog, by the scheme of its registry URI."""

    DATABRICKS = "databricks-uc"
    OPEN_SOURCE = "uc"


def catalog(tracking_uri: str, registry_uri: str | None) -> Catalog | None:
    """Return the Unity Catalog that holds the models; None for any other registry."""
    scheme = (registry_uri or tracking_uri).partition(":")[0].lower()
    if registry_uri is None and scheme == "databricks":  # MLflow's default registry for this tracking URI
        return Catalog.DATABRICKS
    return Catalog(scheme) if scheme in {*Catalog} else None


def check_reference(reference: Reference, catalog: Catalog | None) -> None:
    """Check that the registry can resolve a reference of this form.

    Raises:
        InvalidReference: Unity Catalog has no such references.
    """
    if catalog is None or reference.kind is ReferenceKind.MODEL_ID:
        return
    if reference.kind is ReferenceKind.STAGE:
        raise InvalidReference(
            f"'{reference}' names a stage, and Unity Catalog has no stages: {_remedy(reference, catalog)}"
        )
    if len([part for part in reference.name.split(".") if part]) != 3 or reference.name.count(".") != 2:
        raise InvalidReference(
            f"'{reference}' does not name a model in Unity Catalog, whose names have three parts: write "
            "models:/catalog.schema.name@alias"
        )
    if reference.kind is ReferenceKind.ALIAS and catalog is Catalog.OPEN_SOURCE:
        raise InvalidReference(
            f"'{reference}' names an alias, and open-source Unity Catalog has no aliases: "
            f"{_remedy(reference, catalog)}"
        )


def _remedy(reference: Reference, catalog: Catalog) -> str:
    if catalog is Catalog.OPEN_SOURCE:
        return f"write models:/{reference.name}/latest or a version number, as in models:/{reference.name}/1"
    uri = f"models:/{reference.name}@{reference.selector.lower()}"
    return f"use an alias, as in {uri}, and promote a version by moving the alias to it"
