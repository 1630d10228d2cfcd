"""Reads the operator's list of pinned packages with hashes; strict mode installs only packages on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from serving.promotion_errors import EnvironmentUnavailable, UntrustedArtifact

_HASH = re.compile(r"\s--hash=(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})(?=\s|$)")
_SETTING_NAME = "SERVING_PACKAGES"


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, with the hashes of its files."""

    name: str
    version: Version
    requirement: Requirement
    line: str
    """The entry in the list, joined to one line."""


def read(file: Path) -> list[Package]:
    """Read the list: a pip requirements file whose entries have an exact version and hashes.

    Raises:
        EnvironmentUnavailable: The file cannot be read, or contains an entry of another form.
    """
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise EnvironmentUnavailable(f"{_SETTING_NAME} can't be read: {error}") from error
    lines = (line.partition(" #")[0].strip() for line in re.sub(r"\\\r?\n", " ", text).splitlines())
    return [_package(line) for line in lines if line and not line.startswith("#")]


def _package(line: str) -> Package:
    try:
        requirement = Requirement(_HASH.sub("", line))
        (pin,) = requirement.specifier
        if pin.operator != "==" or requirement.url or not _HASH.search(line):
            raise ValueError
        return Package(canonicalize_name(requirement.name), Version(pin.version), requirement, line)
    except (InvalidRequirement, InvalidVersion, ValueError):
        raise EnvironmentUnavailable(
            f"{_SETTING_NAME} contains the entry {line!r:.200}: write name==version --hash=sha256:…"
        ) from None


def select(
    packages: Sequence[Package],
    required: Iterable[Requirement],
    base: Sequence[Requirement],
    constraints: Iterable[Requirement],
    python: str,
) -> list[str]:
    """Select the highest version of all packages on the list that all requirements allow.

    The whole list is installed, so that no dependency has to be resolved from an index.

    Args:
        packages: The list of the operator.
        required: The requirements of the version.
        base: The requirements of the model process itself.
        constraints: Limits on the versions of packages, without requiring them.
        python: Major and minor version of the Python that will run the environment.

    Returns:
        One entry of the list per package.

    Raises:
        UntrustedArtifact: A required package is not on the list, or not in an allowed version.
        EnvironmentUnavailable: A requirement of the model process is not on the list.
    """
    required = list(required)
    by_name: dict[str, list[Requirement]] = {}
    for requirement in (*required, *base, *constraints):
        by_name.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    markers = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
    offered: dict[str, list[Package]] = {}
    for package in packages:
        marker = package.requirement.marker
        if marker is None or marker.evaluate(markers):
            offered.setdefault(package.name, []).append(package)
    for requirement in required:
        if canonicalize_name(requirement.name) not in offered:
            raise UntrustedArtifact(f"it requires {requirement.name[:100]}, which is not in {_SETTING_NAME}")
    lines = []
    for name, candidates in sorted(offered.items()):
        specifiers = [requirement.specifier for requirement in by_name.get(name, ())]
        allowed = [
            package
            for package in candidates
            if all(specifier.contains(package.version, prereleases=True) for specifier in specifiers)
        ]
        if not allowed:
            texts = ", ".join(map(str, by_name[name]))[:200]
            raise UntrustedArtifact(f"it requires {texts}, and {_SETTING_NAME} has no such version of {name}")
        lines.append(max(allowed, key=lambda package: package.version).line)
    if missing := [str(package) for package in base if canonicalize_name(package.name) not in offered]:
        raise EnvironmentUnavailable(
            f"{_SETTING_NAME} lacks {', '.join(missing)}, which model processes need"
        )
    return lines
