"""Digest of a version's artifacts, by which the service detects changed files."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

TAG = "serving.digest"


def tag_version(name: str, version: str) -> None:
    """Tag a model version with the digest of its artifacts, downloaded from the artifact store."""
    import mlflow

    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        # MLflow adds a file of its own to a download of `models:/…`.
        uri = client.get_model_version_download_uri(name, version)
        value = digest(Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)))
    client.set_model_version_tag(name, version, TAG, value)


def digest(folder: Path) -> str:
    """Return `sha256:` and the SHA-256 over one line per file: path below `folder`, NUL, SHA-256 of the file.

    The lines are sorted by path; paths use slashes.
    """
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"
