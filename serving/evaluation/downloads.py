"""Downloads the file of labelled rows that a tag names, and verifies its digest."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from serving.errors import RegistryUnavailable
from serving.evaluation.sources import FileSource, LabelledRows, read_file, sha256
from serving.promotion_errors import DigestMismatch, UntrustedArtifact
from serving.registry import blocking_calls
from serving.registry.artifact_policy import is_within, local_folder, without_query
from serving.registry.client import RegistryClient
from serving.registry.mlflow_client import with_driver
from serving.registry.mlflow_entities import underlying
from serving.registry.mlflow_errors import map_exceptions
from serving.settings.settings import Settings

_THREAD = "labelled rows"


async def download(source: FileSource, registry: RegistryClient, settings: Settings) -> LabelledRows:
    """Download and read labelled rows.

    Raises:
        DigestMismatch: the file is not the one that the tag pins.
        UntrustedArtifact: the operator does not allow its location.
        PromotionWaits: it cannot be read.
        RegistryError: it cannot be downloaded.
    """
    subject = f"the labelled rows ({without_query(source.uri)[:300]})"
    location = await registry.use_client(subject, lambda client: locate(client, source.uri))
    allowed = settings.allowed_sources
    if allowed and not any(is_within(location, root) for root in allowed):
        raise UntrustedArtifact(f"{subject} are not below any of SERVING_ALLOWED_SOURCES")
    with tempfile.TemporaryDirectory() as folder:
        call = blocking_calls.start(_download, subject, location, folder, settings, name=_THREAD)
        try:
            async with asyncio.timeout(settings.download_seconds):
                path = await call
        except TimeoutError:
            raise RegistryUnavailable(f"{subject}: the download took too long") from None
        digest = await asyncio.to_thread(sha256, path)
        if digest != source.sha256:
            raise DigestMismatch(
                f"{subject} are not those that the tag serving.evaluation of its model pins: "
                f"sha256:{digest}, not sha256:{source.sha256}"
            )
        return await read_file(path, str(source), f"sha256:{digest}", source.target)


def locate(client: Any, uri: str) -> str:
    """Return the location to which a `runs:` or `models:` URI of a file leads, so that rules can check it."""
    scheme, _, path = uri.partition(":/")
    if scheme.lower() != "models":
        return underlying(client, uri)
    name, _, inside = path.lstrip("/").partition("/")
    if name.startswith("m-"):
        return f"{underlying(client, f'models:/{name}').rstrip('/')}/{inside}"
    number, _, inside = inside.partition("/")
    folder = underlying(client, str(client.get_model_version_download_uri(name, number)))
    return f"{folder.rstrip('/')}/{inside}"


def _download(subject: str, location: str, folder: str, settings: Settings) -> Path:
    with map_exceptions(subject, may_be_missing=False, download=Path(folder)):
        if path := local_folder(location):
            return path.resolve(strict=True)
        from mlflow.artifacts import download_artifacts

        uri = with_driver(settings.tracking_uri)
        return Path(download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=uri))
