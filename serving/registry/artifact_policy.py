"""What is let in: where a version's artifacts may come from, and what they may be, before any is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from serving.contract.model_files import ModelFiles
from serving.errors import UntrustedArtifact
from serving.processes.environments import Needs
from serving.registry import strict_mode
from serving.settings.groups import ArtifactPolicySettings
from serving.version import Version

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "[::1]")
_PATHS = {"artifact_path", "code", "conda", "data", "model_data", "model_path", "path", "pickled_model"}
_PATHS |= {"python_model", "serving_input_path", "virtualenv"}


class ArtifactPolicy:
    """The operator's rules."""

    def __init__(self, trust: ArtifactPolicySettings) -> None:
        self._trust = trust

    def check_source(self, version: Version) -> None:
        """Refuse a version whose artifacts come from elsewhere than the operator allows.

        Raises:
            Untrusted: they do.
        """
        allowed = self._trust.allowed_sources
        if allowed and not any(is_within(version.location, each) for each in allowed):
            raise self._elsewhere(version.location)
        if folder := local_folder(version.location):
            self.check_folder(folder.resolve())

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder on this machine, by its path without links, that is not below an allowed one.

        Raises:
            Untrusted: it is not.
        """
        allowed = self._trust.allowed_sources
        roots = [root.resolve() for each in allowed if (root := local_folder(each))]
        if allowed and not any(folder.is_relative_to(root) for root in roots):
            raise self._elsewhere(str(folder))

    def check_requirements(self, files: ModelFiles, needs: Needs) -> None:
        """Refuse a version of which packages would be installed from where the operator does not allow.

        Raises:
            Untrusted: they would.
        """
        allowed = self._trust.allowed_sources
        for each in (*needs.packages, *needs.constraints):
            if each.url and self._trust.strict_artifacts:
                raise UntrustedArtifact(
                    f"it requires {str(each)[:200]}: strict mode installs nothing by its URL"
                )
            if each.url and allowed and not any(is_within(each.url, source) for source in allowed):
                raise UntrustedArtifact(
                    f"it requires {without_query(str(each))[:200]}, which is not below any of "
                    f"SERVING_ALLOWED_SOURCES ({', '.join(allowed)})"
                )
        if self._trust.strict_artifacts:
            strict_mode.check_listed(files)

    def _elsewhere(self, location: str) -> UntrustedArtifact:
        return UntrustedArtifact(
            f"its artifacts come from {without_query(location)[:500]}, which is none of "
            f"SERVING_ALLOWED_SOURCES ({', '.join(self._trust.allowed_sources)})"
        )

    def check_model(self, folder: Path, described: Mapping[str, Any]) -> None:
        """Refuse a downloaded version that leads out of its folder, or in strict mode is more than data.

        Raises:
            Untrusted: it does, or is.
        """
        named = (described.get("flavors"), described.get("saved_input_example_info"))
        for key, path in (found for each in named for found in _paths(each)):
            if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
                raise UntrustedArtifact(f"its MLmodel file names a {key} outside its folder")
        if self._trust.strict_artifacts:
            strict_mode.check(folder, described, self._trust.trusted_types)


def is_within(location: str, allowed: str) -> bool:
    """Whether a URI or path is an allowed one, or below it."""
    found, wanted = _parts(location), _parts(allowed)
    return ".." not in found and found[: len(wanted)] == wanted


def _parts(location: str) -> tuple[str, ...]:
    at = urlsplit(location)
    folder = local_folder(location)
    path = unquote(unquote(at.path if folder is None else str(folder)))
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return ("", "", *parts) if folder else (at.scheme.lower(), at.netloc.lower(), *parts)


def without_query(location: str) -> str:
    """A location as it may be told: what comes behind `?` may be a signature."""
    return location.partition("?")[0]


def local_folder(location: str) -> Path | None:
    """Return the folder on this machine that a path or file URL names, as MLflow reads it; None for others.

    Raises:
        Untrusted: it is a file URL of another machine.
    """
    if not _SCHEME.match(location):
        return Path(unquote(location))
    at = urlsplit(location)
    if at.scheme.lower() != "file":
        return None
    if at.netloc.lower() not in _LOCAL_HOSTS:
        raise UntrustedArtifact(f"its artifacts are at a file URL of another machine, {at.netloc[:100]!r}")
    return Path(unquote(at.path))


def _paths(described: Any) -> Iterator[tuple[str, str]]:
    if isinstance(described, Mapping):
        for key, value in described.items():
            if key in _PATHS and isinstance(value, str):
                yield key, value
            else:
                yield from _paths(value)
    elif isinstance(described, list):
        for each in described:
            yield from _paths(each)
