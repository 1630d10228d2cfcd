"""Creates virtual environments with uv for versions that require other packages than the front has."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import serving
from serving.processes import package_list, uv
from serving.processes.requirements import CURRENT_PYTHON, MLFLOW_PACKAGES, Needs
from serving.promotion_errors import EnvironmentUnavailable

log = logging.getLogger("serving.environments")
# Packages that the code of the model process imports, besides MLflow.
_BASE = ("numpy", "orjson", "pandas", "pyarrow")
# Before Python 3.12, environments contain setuptools. MLflow 2.9 imports pkg_resources, which 81 deprecates.
_SETUPTOOLS = "setuptools<81"
_MIN_PYTHON = "3.10"


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
        python = needs.python or CURRENT_PYTHON
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
        base = sys.version if python == CURRENT_PYTHON else python
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
                base = sys.executable if python == CURRENT_PYTHON else python
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
    if python == CURRENT_PYTHON:
        return "uv can't create an environment for it"
    return (
        f"it was logged under Python {python}, this service runs under Python {CURRENT_PYTHON}, and uv has "
        f"no Python {python}. Where this service runs, run `uv python install {python}` or put it on the PATH"
    )


def _base_requirements(required: Iterable[Requirement], python: str) -> list[str]:
    """Return what the model process needs in addition to the requirements of the version."""
    names = {canonicalize_name(requirement.name) for requirement in required}
    base = [name for name in _BASE if name not in names]
    if Version(python) < Version("3.12") and "setuptools" not in names:
        base.append(_SETUPTOOLS)
    return base if names & {*MLFLOW_PACKAGES} else [*base, f"mlflow=={version('mlflow')}"]
