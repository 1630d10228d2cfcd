"""The digest of a version's artifacts, by which a serving front knows them again."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

TAG = "serving.digest"


def record(name: str, version: str) -> None:
    """Tag a model version with the digest of its artifacts, as the artifact store gives them back."""
    import mlflow

    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        # Not `models:/…`, with which MLflow puts a file of its own beside the artifacts.
        stored = client.get_model_version_download_uri(name, version)
        found = digest(Path(mlflow.artifacts.download_artifacts(stored, dst_path=folder)))
    client.set_model_version_tag(name, version, TAG, found)


def digest(folder: Path) -> str:
    """`sha256:` and the SHA-256 over a line for each file: its path below `folder`, NUL, its own SHA-256.

    The lines are sorted by path; paths have slashes.
    """
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"
