"""The operator's list of packages, from which alone strict mode installs: pinned versions with hashes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from serving.errors import EnvironmentUnavailable, UntrustedArtifact

_HASH = re.compile(r"\s--hash=(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})(?=\s|$)")
_SETTING = "SERVING_PACKAGES"


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, with the hashes of its files."""

    name: str
    version: Version
    requirement: Requirement
    line: str
    """The entry in the list, in one line."""


def read(file: Path) -> list[Package]:
    """Read the list: a requirements file of pip with an exact version and hashes for each entry.

    Raises:
        NoEnvironment: the file can't be read, or has another entry.
    """
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise EnvironmentUnavailable(f"{_SETTING} can't be read: {error}") from error
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
            f"{_SETTING} has the entry {line!r:.200}: write name==version --hash=sha256:…"
        ) from None


def select(
    packages: Sequence[Package],
    required: Iterable[Requirement],
    own: Sequence[Requirement],
    constraints: Iterable[Requirement],
    python: str,
) -> list[str]:
    """Return one entry of the list for each package in it: the highest version that all requirements allow.

    All of the list is installed, so that no dependency has to be resolved from what an index offers.

    `own` is what model processes need beside what the version requires.

    Raises:
        Untrusted: a required package is not in the list, or not in a version that is allowed.
        NoEnvironment: what model processes need is not in the list.
    """
    required = list(required)
    wanted: dict[str, list[Requirement]] = {}
    for each in (*required, *own, *constraints):
        wanted.setdefault(canonicalize_name(each.name), []).append(each)
    facts = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
    offered: dict[str, list[Package]] = {}
    for package in packages:
        marker = package.requirement.marker
        if marker is None or marker.evaluate(facts):
            offered.setdefault(package.name, []).append(package)
    for each in required:
        if canonicalize_name(each.name) not in offered:
            raise UntrustedArtifact(f"it requires {each.name[:100]}, which is not in {_SETTING}")
    chosen = []
    for name, found in sorted(offered.items()):
        specifiers = [each.specifier for each in wanted.get(name, ())]
        fitting = [
            each
            for each in found
            if all(specifier.contains(each.version, prereleases=True) for specifier in specifiers)
        ]
        if not fitting:
            asked = ", ".join(map(str, wanted[name]))[:200]
            raise UntrustedArtifact(f"it requires {asked}, and {_SETTING} has no such version of {name}")
        chosen.append(max(fitting, key=lambda each: each.version).line)
    if missing := [str(each) for each in own if canonicalize_name(each.name) not in offered]:
        raise EnvironmentUnavailable(f"{_SETTING} lacks {', '.join(missing)}, which model processes need")
    return chosen
