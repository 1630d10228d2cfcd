"""The Python and the packages that a version requires, and environments in which uv installs them."""

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
from serving.errors import EnvironmentUnavailable
from serving.processes import package_list, uv

log = logging.getLogger("serving.environments")
# What a model process needs of its own, and MLflow, of which skinny is a part.
_OWN = ("numpy", "orjson", "pandas", "pyarrow")
_MLFLOW = ("mlflow", "mlflow-skinny")
# Environments of Python before 3.12 have it. MLflow 2.9 imports its pkg_resources, deprecated since 81.
_SETUPTOOLS = "setuptools<81"
_HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
_MIN_PYTHON = "3.10"
_MAX_NAMED = 10
_OPTION = re.compile(r"(-r|--requirement|-c|--constraint)[ =]+(\S+)$")
_PYTHON = re.compile(r"\d+\.\d+")


@dataclass(slots=True)
class Needs:
    """The Python and the packages that a version was logged with."""

    python: str = ""
    """Major and minor version; empty if it is not known."""
    packages: list[Requirement] = field(default_factory=list)
    constraints: list[Requirement] = field(default_factory=list)
    fault: str = ""
    """Why no environment can be made of its files, in the terms of who logged it."""

    def applying(self) -> list[Requirement]:
        """Return the packages whose markers are true of this machine and its Python."""
        python = self.python or _HERE
        facts = {"extra": ""}
        if python != _HERE:
            facts |= {"python_version": python, "python_full_version": f"{python}.0"}
        return [each for each in self.packages if each.marker is None or each.marker.evaluate(facts)]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that a version requires and that is not installed so."""

    required: str
    installed: str
    matters: bool
    """False where only the last numbers of an exact version differ."""

    def __str__(self) -> str:
        return f"{self.required} ({f'installed: {self.installed}' if self.installed else 'not installed'})"


def read(files: ModelFiles) -> Needs:
    """Read from a version's files the Python and the packages that it requires."""
    needs = Needs()
    try:
        if fault := files.faults.get("python_env.yaml"):
            raise ValueError(fault)
        described = files.documents.get("python_env.yaml", {})
        needs.python = _python(described.get("python") or _flavor(files).get("python_version"))
        lines = described.get("dependencies") or ["-r requirements.txt"]
        if not isinstance(lines, list):
            raise ValueError("the dependencies in python_env.yaml are no list")
        _collect(files, map(str, lines), "python_env.yaml", needs, needs.packages, set())
    except (ValueError, RecursionError) as error:
        needs.fault = f"the files of its environment can't be read: {error}"
    return needs


def _python(named: Any) -> str:
    if named is None:
        return ""
    # Without quotes, 3.10 is the number 3.1.
    if not isinstance(named, str) or not (found := _PYTHON.match(named)):
        raise ValueError(f"the Python {named!r:.50} is no version: write it in quotes, as '{_HERE}'")
    return found[0]


def _flavor(files: ModelFiles) -> Mapping[str, Any]:
    flavors = files.mlmodel.get("flavors")
    found = flavors.get("python_function") if isinstance(flavors, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _collect(
    files: ModelFiles,
    lines: Iterable[str],
    where: str,
    needs: Needs,
    into: list[Requirement],
    seen: set[str],
) -> None:
    for line in _statements(lines):
        if found := _OPTION.match(line):
            option, name = found.groups()
            if fault := files.faults.get(name):
                needs.fault = f"its {where} can't be read: it refers to {name:.100}: {fault}"
            elif name not in seen and name in files.texts:
                target = needs.constraints if option in ("-c", "--constraint") else into
                seen.add(name)
                _collect(files, files.texts[name], name, needs, target, seen)
        elif "${" in line:  # uv would put values of environment variables into URLs
            needs.fault = f"its {where} can't be read: {line!r:.200} refers to an environment variable"
        elif line.startswith("-"):
            needs.fault = (
                f"its {where} can't be read: {line!r:.200} is an option, which is not taken from a model. "
                "Log it without, and let the package index be set where this service runs (UV_INDEX, "
                "UV_DEFAULT_INDEX)"
            )
        else:
            try:
                into.append(Requirement(line))
            except (InvalidRequirement, RecursionError):
                needs.fault = (
                    f"its {where} can't be read: {line!r:.200} is no requirement. Log it with "
                    "pip_requirements of the form name==version"
                )


def _statements(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        text = line.partition(" #")[0].strip()
        if text and not text.startswith("#"):
            yield text


def differences(needs: Needs) -> list[Difference]:
    """List where what is installed here is not what a version requires, the Python first."""
    found = []
    if needs.python not in ("", _HERE):
        found.append(Difference(f"Python {needs.python}", _HERE, matters=True))
    for each in needs.applying():
        installed = _installed(each.name)
        if each.url or not (installed and _contains(each, installed)):
            found.append(Difference(str(each), installed, _matters(each, installed)))
    return found


def _contains(wanted: Requirement, installed: str) -> bool:
    try:
        return wanted.specifier.contains(installed, prereleases=True)
    except InvalidVersion:  # what is installed has one of before PEP 440
        return False


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _matters(wanted: Requirement, installed: str) -> bool:
    """Decide whether a package differs in more than the last numbers of an exact version.

    All that a model requires is pinned exactly, and a front is upgraded at another time than a model is
    trained: a warning of each patch would stand at nearly every version, and be read by nobody. A minor
    version counts, since scikit-learn gives no guarantee beyond it; of MLflow only the major one does.
    """
    pins = [each.version for each in wanted.specifier if each.operator == "=="]
    numbers = 1 if canonicalize_name(wanted.name) in _MLFLOW else 2
    try:
        return len(pins) != 1 or Version(pins[0]).release[:numbers] != Version(installed).release[:numbers]
    except InvalidVersion:  # a wildcard, or nothing is installed
        return True


def listed(found: Sequence[Difference]) -> str:
    """Name what differs, what matters first."""
    names = [str(each) for each in sorted(found, key=lambda each: not each.matters)]
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


REMEDY = "set SERVING_ENVIRONMENTS=true to run it in an environment of its own"


class Environments:
    """Makes environments below `root`, and keeps them.

    In strict mode they consist of wheels of the operator's list, whose hashes are verified, and nothing else.
    """

    def __init__(self, root: Path, *, strict: bool, packages: Path | None = None) -> None:
        self._root, self._strict, self._packages = root, strict, packages
        self._making = asyncio.Lock()

    async def interpreter(self, needs: Needs) -> Path:
        """Return the Python of an environment that meets these needs.

        Raises:
            NoEnvironment: it can't be made.
            Untrusted: strict mode does not allow what it requires.
        """
        if needs.fault:
            raise EnvironmentUnavailable(needs.fault, may_heal=False)
        python = needs.python or _HERE
        if Version(python) < Version(_MIN_PYTHON):
            raise EnvironmentUnavailable(
                f"it was logged under Python {python}, and model processes need {_MIN_PYTHON} or later: "
                "log it again under one of these",
                may_heal=False,
            )
        own = _own(needs.applying(), python)
        lines = sorted({*map(str, needs.packages), *own})
        constraints = sorted({*map(str, needs.constraints)})
        if self._strict:
            lines, constraints = await asyncio.to_thread(self._selected, needs, own, python), []
        source = Path(serving.__file__).parent
        base = sys.version if python == _HERE else python
        identity = "\n".join([base, str(source), str(self._strict), *lines, "constraints", *constraints])
        place = self._root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        async with self._making:
            if not (place / "bin" / "python").exists():  # or the Python that it is based on is there no more
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
                await self._make(place, python, lines, constraints, source)
        return place / "bin" / "python"

    def _selected(self, needs: Needs, own: Sequence[str], python: str) -> list[str]:
        if self._packages is None:
            raise EnvironmentUnavailable(
                "strict mode installs packages from the operator's list alone: set SERVING_PACKAGES",
                may_heal=False,
            )
        offered, own_needs = package_list.read(self._packages), [*map(Requirement, own)]
        return package_list.select(offered, needs.applying(), own_needs, needs.constraints, python)

    async def _make(
        self, place: Path, python: str, lines: Sequence[str], constraints: Sequence[str], source: Path
    ) -> None:
        program = uv.find()
        log.info("an environment is made with Python %s for: %s", python, ", ".join(lines))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._root, prefix="making-") as new:
                made, listing = Path(new) / "environment", Path(new) / "requirements.txt"
                base = sys.executable if python == _HERE else python
                downloads = ["--no-python-downloads"] if self._strict else []
                await uv.run(
                    _no_python(python), program, "venv", "--quiet", *downloads, "--python", base, str(made)
                )
                options = ["--python", str(made / "bin" / "python")]
                if self._strict:
                    listing.write_text("\n".join(lines))
                    options += ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
                    options += ["--requirement", str(listing)]
                else:
                    listing.write_text("\n".join(constraints))
                    options += ["--constraint", str(listing)] if constraints else []
                    options += lines
                await uv.run(
                    _NOT_INSTALLED,
                    program,
                    "pip",
                    "install",
                    "--quiet",
                    *options,
                    cwd=Path(new) if self._strict else None,
                )
                # All that it takes from this installation is this package.
                (made / "front").mkdir()
                (made / "front" / "serving").symlink_to(source)
                _put(made, place)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"no environment could be made for it in {self._root}: {error}: let this service write "
                "there, or set SERVING_STORE_DIR"
            ) from error


def _put(made: Path, place: Path) -> None:
    try:
        made.rename(place)
    except OSError:
        if not place.exists():  # otherwise another front was faster
            raise


_NOT_INSTALLED = (
    "the packages that it requires can't be installed together: log it with requirements that can, or let uv "
    "reach the index that has them (UV_INDEX, UV_DEFAULT_INDEX) where this service runs"
)


def _no_python(wanted: str) -> str:
    if wanted == _HERE:
        return "uv can't make an environment for it"
    return (
        f"it was logged under Python {wanted}, this service runs under Python {_HERE}, and uv has no Python "
        f"{wanted}. Where this service runs, run `uv python install {wanted}` or put it on the PATH"
    )


def _own(wanted: Iterable[Requirement], python: str) -> list[str]:
    names = {canonicalize_name(each.name) for each in wanted}
    own = [name for name in _OWN if name not in names]
    if Version(python) < Version("3.12") and "setuptools" not in names:
        own.append(_SETUPTOOLS)
    return own if names & {*_MLFLOW} else [*own, f"mlflow=={version('mlflow')}"]
