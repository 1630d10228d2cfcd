"""Links from the status page to the pages of a version, its run and its logged model in the MLflow UI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field

from serving.settings.groups import RegistrySettings
from serving.telemetry.redaction import redact
from serving.version import Version

# The layout in which MLflow stores a logged model below the artifacts of its experiment.
_ARTIFACTS = re.compile(r"/(\d+)/models/(m-\w+)/artifacts/?$")


class MlflowLinks(BaseModel):
    """Addresses of pages in the MLflow UI; null where they are unknown."""

    version: str | None = None
    run: str | None = None
    logged_model: str | None = Field(default=None, description="null also with a custom artifact location")


@dataclass(frozen=True, slots=True)
class MlflowUi:
    """Base URLs of the MLflow UI, without credentials; None where MLflow is not a server."""

    registry: str | None
    tracking: str | None
    workspace: str | None = None

    @classmethod
    def of(cls, settings: RegistrySettings) -> MlflowUi:
        """Return the UI from `SERVING_MLFLOW_UI_URL`, or from MLflow's own URIs if they are http(s)."""
        ui, tracking = settings.mlflow_ui_url, settings.tracking_uri
        registry = base_url(ui or settings.registry_uri or tracking)
        return cls(registry, base_url(ui or tracking), settings.workspace)

    def links(self, version: Version) -> MlflowLinks:
        """Return the links of a version."""
        links = MlflowLinks()
        # Without it, the UI shows the workspace that its user opened last.
        query = f"?workspace={quote(self.workspace, safe='')}" if self.workspace else ""
        if self.registry and version.version:
            name = quote(version.name, safe="")
            links.version = f"{self.registry}/#/models/{name}/versions/{version.version}{query}"
        if self.tracking and version.run_id:
            links.run = f"{self.tracking}/#/runs/{quote(version.run_id, safe='')}{query}"
        artifacts = _ARTIFACTS.search(version.location)
        if self.tracking and artifacts and artifacts[2] == version.model_id:
            links.logged_model = f"{self.tracking}/#/experiments/{artifacts[1]}/models/{artifacts[2]}{query}"
        return links


def base_url(uri: str) -> str | None:
    """Return an http(s) URL without credentials, query, fragment and final slash; None for other URIs."""
    # First without secrets: a password with a slash would end up in the path.
    parts = urlsplit(redact(uri))
    host = parts.netloc.rpartition("@")[2]
    return (
        f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        if parts.scheme in ("http", "https") and host
        else None
    )
