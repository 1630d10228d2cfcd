"""Checks artifacts against the operator's policy, on their source and content, before any is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from serving.contract.model_files import ModelFiles
from serving.processes.requirements import Needs
from serving.promotion_errors import UntrustedArtifact
from serving.registry import strict_mode
from serving.settings.groups import ArtifactPolicySettings
from serving.version import Version

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "[::1]")
_PATH_KEYS = {"artifact_path", "code", "conda", "data", "model_data", "model_path", "path", "pickled_model"}
_PATH_KEYS |= {"python_model", "serving_input_path", "virtualenv"}


class ArtifactPolicy:
    """The operator's rules for artifacts."""

    def __init__(self, settings: ArtifactPolicySettings) -> None:
        self._settings = settings

    def check_source(self, version: Version) -> None:
        """Check the location of a version's artifacts.

        Raises:
            UntrustedArtifact: it is not below an allowed source.
        """
        allowed = self._settings.allowed_sources
        if allowed and not any(is_within(version.location, source) for source in allowed):
            raise self._source_not_allowed(version.location)
        if folder := local_folder(version.location):
            self.check_folder(folder.resolve())

    def check_folder(self, folder: Path) -> None:
        """Check a folder on this machine, given by its path without links.

        Raises:
            UntrustedArtifact: it is not below an allowed source.
        """
        allowed = self._settings.allowed_sources
        roots = [root.resolve() for source in allowed if (root := local_folder(source))]
        if allowed and not any(folder.is_relative_to(root) for root in roots):
            raise self._source_not_allowed(str(folder))

    def check_requirements(self, files: ModelFiles, needs: Needs) -> None:
        """Check from where a version's packages would be installed.

        Raises:
            UntrustedArtifact: the operator does not allow it.
        """
        allowed = self._settings.allowed_sources
        for package in (*needs.packages, *needs.constraints):
            if package.url and self._settings.strict_artifacts:
                raise UntrustedArtifact(
                    f"it requires {str(package)[:200]}: strict mode installs nothing by its URL"
                )
            if package.url and allowed and not any(is_within(package.url, source) for source in allowed):
                raise UntrustedArtifact(
                    f"it requires {without_query(str(package))[:200]}, which is not below any of "
                    f"SERVING_ALLOWED_SOURCES ({', '.join(allowed)})"
                )
        if self._settings.strict_artifacts:
            strict_mode.check_listed(files)

    def _source_not_allowed(self, location: str) -> UntrustedArtifact:
        return UntrustedArtifact(
            f"its artifacts come from {without_query(location)[:500]}, which is none of "
            f"SERVING_ALLOWED_SOURCES ({', '.join(self._settings.allowed_sources)})"
        )

    def check_model(self, folder: Path, mlmodel: Mapping[str, Any]) -> None:
        """Check a downloaded version by its parsed MLmodel file.

        Raises:
            UntrustedArtifact: it names a path outside its folder, or in strict mode may contain code.
        """
        sections = (mlmodel.get("flavors"), mlmodel.get("saved_input_example_info"))
        for key, path in (item for section in sections for item in _paths(section)):
            if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
                raise UntrustedArtifact(f"its MLmodel file names a {key} outside its folder")
        if self._settings.strict_artifacts:
            strict_mode.check(folder, mlmodel, self._settings.trusted_types)


def is_within(location: str, allowed: str) -> bool:
    """Return whether a URI or path is an allowed one, or below it."""
    parts, allowed_parts = _parts(location), _parts(allowed)
    return ".." not in parts and parts[: len(allowed_parts)] == allowed_parts


def _parts(location: str) -> tuple[str, ...]:
    url = urlsplit(location)
    folder = local_folder(location)
    path = unquote(unquote(url.path if folder is None else str(folder)))
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return ("", "", *parts) if folder else (url.scheme.lower(), url.netloc.lower(), *parts)


def without_query(location: str) -> str:
    """Return a location without its query, which may contain a signature."""
    return location.partition("?")[0]


def local_folder(location: str) -> Path | None:
    """Return the folder on this machine that a path or file URL names, by MLflow's rules; None for others.

    Raises:
        UntrustedArtifact: it is a file URL of another machine.
    """
    if not _SCHEME.match(location):
        return Path(unquote(location))
    url = urlsplit(location)
    if url.scheme.lower() != "file":
        return None
    if url.netloc.lower() not in _LOCAL_HOSTS:
        raise UntrustedArtifact(f"its artifacts are at a file URL of another machine, {url.netloc[:100]!r}")
    return Path(unquote(url.path))


def _paths(section: Any) -> Iterator[tuple[str, str]]:
    """Yield the keys and values in a section of the MLmodel file that name a path."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key in _PATH_KEYS and isinstance(value, str):
                yield key, value
            else:
                yield from _paths(value)
    elif isinstance(section, list):
        for entry in section:
            yield from _paths(entry)
