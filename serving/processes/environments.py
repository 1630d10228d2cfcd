"""Reads which Python and packages a version requires, and creates environments for versions with uv."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import serving
from serving.contract.model_files import ModelFiles
from serving.processes import package_list, uv
from serving.promotion_errors import EnvironmentUnavailable

log = logging.getLogger("serving.environments")
# Packages that the code of the model process imports, besides MLflow.
_BASE = ("numpy", "orjson", "pandas", "pyarrow")
_MLFLOW = ("mlflow", "mlflow-skinny")
# Before Python 3.12, environments contain setuptools. MLflow 2.9 imports pkg_resources, which 81 deprecates.
_SETUPTOOLS = "setuptools<81"
_CURRENT_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_MIN_PYTHON = "3.10"
_MAX_LISTED = 10
_FILE_OPTION = re.compile(r"(-r|--requirement|-c|--constraint)[ =]+(\S+)$")
_PYTHON_VERSION = re.compile(r"\d+\.\d+")


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
        python = self.python or _CURRENT_PYTHON
        markers = {"extra": ""}
        if python != _CURRENT_PYTHON:
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
            f"the Python version {value!r:.50} is invalid: write it in quotes, as '{_CURRENT_PYTHON}'"
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
    if needs.python not in ("", _CURRENT_PYTHON):
        unmet.append(Difference(f"Python {needs.python}", _CURRENT_PYTHON, matters=True))
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
    numbers = 1 if canonicalize_name(requirement.name) in _MLFLOW else 2
    try:
        return len(pins) != 1 or Version(pins[0]).release[:numbers] != Version(installed).release[:numbers]
    except InvalidVersion:  # a wildcard, or nothing is installed
        return True


def describe(differences: Sequence[Difference]) -> str:
    """Return a list of differences for people, those that matter first."""
    names = [str(unmet) for unmet in sorted(differences, key=lambda unmet: not unmet.matters)]
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


REMEDY = "set SERVING_ENVIRONMENTS=true to run it in an environment of its own"


class Environments:
    """Creates environments below `root`, and reuses them.

    In strict mode they contain only wheels from the operator's list of packages, whose hashes are verified.
    """

    def __init__(self, root: Path, *, strict: bool, packages: Path | None = None) -> None:
        self._root, self._strict, self._packages = root, strict, packages
        self._lock = asyncio.Lock()

    async def interpreter(self, needs: Needs) -> Path:
        """Return the Python of an environment that meets these needs; create the environment if necessary.

        Raises:
            EnvironmentUnavailable: It cannot be created.
            UntrustedArtifact: Strict mode does not allow a requirement.
        """
        if needs.fault:
            raise EnvironmentUnavailable(needs.fault, may_heal=False)
        python = needs.python or _CURRENT_PYTHON
        if Version(python) < Version(_MIN_PYTHON):
            raise EnvironmentUnavailable(
                f"it was logged under Python {python}, and model processes need {_MIN_PYTHON} or later: "
                "log it again under one of these",
                may_heal=False,
            )
        base_packages = _base_requirements(needs.applicable(), python)
        lines = sorted({*map(str, needs.packages), *base_packages})
        constraints = sorted({*map(str, needs.constraints)})
        if self._strict:
            lines, constraints = await asyncio.to_thread(self._select, needs, base_packages, python), []
        source = Path(serving.__file__).parent
        base = sys.version if python == _CURRENT_PYTHON else python
        identity = "\n".join([base, str(source), str(self._strict), *lines, "constraints", *constraints])
        folder = self._root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        async with self._lock:
            if not (folder / "bin" / "python").exists():  # missing, or a link to a Python that was removed
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                await self._create(folder, python, lines, constraints, source)
        return folder / "bin" / "python"

    def _select(self, needs: Needs, base_packages: Sequence[str], python: str) -> list[str]:
        if self._packages is None:
            raise EnvironmentUnavailable(
                "strict mode installs only packages from the operator's list: set SERVING_PACKAGES",
                may_heal=False,
            )
        offered, base = package_list.read(self._packages), [*map(Requirement, base_packages)]
        return package_list.select(offered, needs.applicable(), base, needs.constraints, python)

    async def _create(
        self, folder: Path, python: str, lines: Sequence[str], constraints: Sequence[str], source: Path
    ) -> None:
        program = uv.find()
        log.info("creating an environment with Python %s for: %s", python, ", ".join(lines))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._root, prefix="making-") as parent:
                new, file = Path(parent) / "environment", Path(parent) / "requirements.txt"
                base = sys.executable if python == _CURRENT_PYTHON else python
                downloads = ["--no-python-downloads"] if self._strict else []
                await uv.run(
                    _no_python(python), program, "venv", "--quiet", *downloads, "--python", base, str(new)
                )
                options = ["--python", str(new / "bin" / "python")]
                if self._strict:
                    file.write_text("\n".join(lines))
                    options += ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
                    options += ["--requirement", str(file)]
                else:
                    file.write_text("\n".join(constraints))
                    options += ["--constraint", str(file)] if constraints else []
                    options += lines
                cwd = Path(parent) if self._strict else None
                await uv.run(_NOT_INSTALLED, program, "pip", "install", "--quiet", *options, cwd=cwd)
                # The environment uses this package, and no other, from the front's installation.
                (new / "front").mkdir()
                (new / "front" / "serving").symlink_to(source)
                _publish(new, folder)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"no environment could be created for it in {self._root}: {error}: let this service write "
                "there, or set SERVING_STORE_DIR"
            ) from error


def _publish(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another front was faster
            raise


_NOT_INSTALLED = (
    "the packages that it requires can't be installed together: log it with requirements that can, or let uv "
    "reach the index that has them (UV_INDEX, UV_DEFAULT_INDEX) where this service runs"
)


def _no_python(python: str) -> str:
    if python == _CURRENT_PYTHON:
        return "uv can't create an environment for it"
    return (
        f"it was logged under Python {python}, this service runs under Python {_CURRENT_PYTHON}, and uv has "
        f"no Python {python}. Where this service runs, run `uv python install {python}` or put it on the PATH"
    )


def _base_requirements(required: Iterable[Requirement], python: str) -> list[str]:
    """Return what the model process needs in addition to the requirements of the version."""
    names = {canonicalize_name(requirement.name) for requirement in required}
    base = [name for name in _BASE if name not in names]
    if Version(python) < Version("3.12") and "setuptools" not in names:
        base.append(_SETUPTOOLS)
    return base if names & {*_MLFLOW} else [*base, f"mlflow=={version('mlflow')}"]
