"""Reads which Python and packages a version requires, and compares them with those of the front."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from serving.contract.model_files import ModelFiles

MLFLOW_PACKAGES = ("mlflow", "mlflow-skinny")
CURRENT_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_MAX_LISTED = 10
_FILE_OPTION = re.compile(r"(-r|--requirement|-c|--constraint)[ =]+(\S+)$")
_PYTHON_VERSION = re.compile(r"\d+\.\d+")
REMEDY = "set SERVING_ENVIRONMENTS=true to run it in an environment of its own"


@dataclass(slots=True)
class Needs:
    """The Python and the packages that a version was logged with."""

    python: str = ""
    """Major and minor version; empty if it is unknown."""
    packages: list[Requirement] = field(default_factory=list)
    constraints: list[Requirement] = field(default_factory=list)
    fault: str = ""
    """Why no environment can be created from its files, for the person who logged it."""

    def applicable(self) -> list[Requirement]:
        """Return the packages whose markers match this machine and the Python of the version."""
        python = self.python or CURRENT_PYTHON
        markers = {"extra": ""}
        if python != CURRENT_PYTHON:
            markers |= {"python_version": python, "python_full_version": f"{python}.0"}
        return [
            package for package in self.packages if package.marker is None or package.marker.evaluate(markers)
        ]


@dataclass(frozen=True, slots=True)
class Difference:
    """A requirement of a version that the installed packages do not meet."""

    required: str
    installed: str
    matters: bool
    """False if only the last numbers of an exact version differ."""

    def __str__(self) -> str:
        return f"{self.required} ({f'installed: {self.installed}' if self.installed else 'not installed'})"


def read(files: ModelFiles) -> Needs:
    """Return the Python and the packages that a version requires, from its files."""
    needs = Needs()
    try:
        if fault := files.faults.get("python_env.yaml"):
            raise ValueError(fault)
        python_env = files.documents.get("python_env.yaml", {})
        needs.python = _python(python_env.get("python") or _flavor(files).get("python_version"))
        lines = python_env.get("dependencies") or ["-r requirements.txt"]
        if not isinstance(lines, list):
            raise ValueError("the dependencies in python_env.yaml are not a list")
        _collect(files, map(str, lines), "python_env.yaml", needs, needs.packages, set())
    except (ValueError, RecursionError) as error:
        needs.fault = f"the files of its environment can't be read: {error}"
    return needs


def _python(value: Any) -> str:
    if value is None:
        return ""
    # Without quotes, YAML reads 3.10 as the number 3.1.
    if not isinstance(value, str) or not (match := _PYTHON_VERSION.match(value)):
        raise ValueError(
            f"the Python version {value!r:.50} is invalid: write it in quotes, as '{CURRENT_PYTHON}'"
        )
    return match[0]


def _flavor(files: ModelFiles) -> Mapping[str, Any]:
    flavors = files.mlmodel.get("flavors")
    flavor = flavors.get("python_function") if isinstance(flavors, Mapping) else None
    return flavor if isinstance(flavor, Mapping) else {}


def _collect(
    files: ModelFiles,
    lines: Iterable[str],
    file: str,
    needs: Needs,
    requirements: list[Requirement],
    seen: set[str],
) -> None:
    for line in _statements(lines):
        if match := _FILE_OPTION.match(line):
            option, name = match.groups()
            if fault := files.faults.get(name):
                needs.fault = f"its {file} can't be read: it refers to {name:.100}: {fault}"
            elif name not in seen and name in files.texts:
                target = needs.constraints if option in ("-c", "--constraint") else requirements
                seen.add(name)
                _collect(files, files.texts[name], name, needs, target, seen)
        elif "${" in line:  # uv would insert values of environment variables into URLs
            needs.fault = f"its {file} can't be read: {line!r:.200} refers to an environment variable"
        elif line.startswith("-"):
            needs.fault = (
                f"its {file} can't be read: {line!r:.200} is an option, and options in models are not "
                "allowed. Log the model without it, and set the package index where this service runs "
                "(UV_INDEX, UV_DEFAULT_INDEX)"
            )
        else:
            try:
                requirements.append(Requirement(line))
            except (InvalidRequirement, RecursionError):
                needs.fault = (
                    f"its {file} can't be read: {line!r:.200} is not a requirement. Log the model with "
                    "pip_requirements of the form name==version"
                )


def _statements(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        text = line.partition(" #")[0].strip()
        if text and not text.startswith("#"):
            yield text


def differences(needs: Needs) -> list[Difference]:
    """Return the requirements of a version that the front's environment does not meet, the Python first."""
    unmet = []
    if needs.python not in ("", CURRENT_PYTHON):
        unmet.append(Difference(f"Python {needs.python}", CURRENT_PYTHON, matters=True))
    for package in needs.applicable():
        installed = _installed(package.name)
        if package.url or not (installed and _contains(package, installed)):
            unmet.append(Difference(str(package), installed, _matters(package, installed)))
    return unmet


def _contains(requirement: Requirement, installed: str) -> bool:
    try:
        return requirement.specifier.contains(installed, prereleases=True)
    except InvalidVersion:  # the installed package has a version from before PEP 440
        return False


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _matters(requirement: Requirement, installed: str) -> bool:
    """Return whether a package differs in more than the last numbers of an exact version.

    MLflow pins the requirements of a model exactly, and fronts are upgraded independently of models. Warnings
    about patch releases would appear on nearly all versions and be ignored. A minor release matters, because
    scikit-learn guarantees nothing across minor releases; for MLflow only a major release matters.
    """
    pins = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
    numbers = 1 if canonicalize_name(requirement.name) in MLFLOW_PACKAGES else 2
    try:
        return len(pins) != 1 or Version(pins[0]).release[:numbers] != Version(installed).release[:numbers]
    except InvalidVersion:  # a wildcard, or nothing is installed
        return True


def describe(differences: Sequence[Difference]) -> str:
    """Return a list of differences for people, those that matter first."""
    names = [str(unmet) for unmet in sorted(differences, key=lambda unmet: not unmet.matters)]
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
