"""Identifies the registry that the settings name, so that state on disk belongs to one registry only."""

from __future__ import annotations

import os

from serving.settings.groups import RegistrySettings
from serving.settings.unity_catalog import Catalog
from serving.telemetry.redaction import redact

_DATABRICKS_VARIABLES = ("DATABRICKS_HOST", "DATABRICKS_CONFIG_PROFILE")
"""With these, the same URI names the registries of different Databricks workspaces."""


def registry_identity(settings: RegistrySettings) -> str:
    """Return a text without passwords that differs for registries with different versions or artifacts.

    It is the URI of the registry, followed by what else distinguishes it: the tracking server, from which
    artifacts may come, the MLflow workspace and the Databricks host.
    """
    registry, tracking = settings.registry_uri or settings.tracking_uri, settings.tracking_uri
    parts = [redact(registry)]
    if tracking != registry:
        parts.append(f"tracking={redact(tracking)}")
    if settings.workspace:
        parts.append(f"workspace={settings.workspace}")
    if settings.catalog is Catalog.DATABRICKS or tracking.startswith("databricks"):
        parts += [f"{name}={os.environ[name]}" for name in _DATABRICKS_VARIABLES if os.environ.get(name)]
    return "\n".join(parts)
