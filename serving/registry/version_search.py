"""Finds the versions that a reference names, with MLflow's client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serving.errors import ReferenceNotFound
from serving.reference import Reference, ReferenceKind
from serving.registry.mlflow_entities import aliased


def search(client: Any, name: str) -> list[Any]:
    """Return all versions of a model, from every page of the registry's response."""
    quote = '"' if "'" in name else "'"
    versions: list[Any] = []
    token: str | None = None
    while token != "":
        page = client.search_model_versions(f"name={quote}{name}{quote}", page_token=token)
        versions, token = versions + list(page), page.token or ""
    return versions


def named(client: Any, reference: Reference, search: Callable[[str], list[Any]]) -> list[Any]:
    """Return the versions that the reference names, the one that is served first.

    Raises:
        ReferenceNotFound: it names no version at present.
    """
    name = reference.name
    if reference.kind is ReferenceKind.VERSION:
        return [client.get_model_version(name, reference.selector)]
    if reference.kind is ReferenceKind.ALIAS:
        return [aliased(client, name, reference.selector)]
    if "'" in name and '"' in name:
        raise ReferenceNotFound(f"{reference} names nothing in the registry (no filter has both quotes)")
    versions = sorted(search(name), key=lambda version: int(version.version), reverse=True)
    if not versions:
        raise ReferenceNotFound(f"the registry has no version of a model {name!r}")
    if reference.kind is ReferenceKind.LATEST:
        return [versions[0]]
    staged = [version for version in versions if version.current_stage == reference.selector]
    if not staged:
        raise ReferenceNotFound(f"no version of {name!r} is in stage {reference.selector}")
    return staged
