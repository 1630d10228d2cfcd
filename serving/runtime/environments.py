"""Interpreters for versions whose requirements are not met here, in environments that uv makes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import serving
from serving.errors import NoEnvironment

log = logging.getLogger("serving.environments")
# What a model process needs of its own, and MLflow, of which skinny is a part.
_OWN = ("numpy", "orjson", "pandas", "pyarrow", "pydantic")
_MLFLOW = ("mlflow", "mlflow-skinny")
_SECONDS = 600.0
_TOLD = 400


def requirements(file: Path) -> tuple[Requirement, ...]:
    """The requirements in a file that apply to this machine; none where there is no file.

    Raises:
        NoEnvironment: a line is none, such as an option that names another index.
    """
    try:
        lines = [line.partition(" #")[0].strip() for line in file.read_text().splitlines()]
        found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, InvalidRequirement) as error:
        raise NoEnvironment(f"its requirements can't be read: {error}") from error
    return tuple(each for each in found if each.marker is None or each.marker.evaluate())


def unmet(wanted: Sequence[Requirement]) -> list[Requirement]:
    """Those that what is installed here does not meet."""
    return [each for each in wanted if not _is_met(each)]


def _is_met(wanted: Requirement) -> bool:
    if wanted.url:
        return False
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


class Environments:
    """Makes environments below `root`, and keeps them; in strict mode no package is built for that."""

    def __init__(self, root: Path, *, strict: bool) -> None:
        self._root, self._strict = root, strict
        self._making = asyncio.Lock()

    async def interpreter(self, wanted: Sequence[Requirement]) -> Path:
        """The Python of an environment with these requirements.

        Raises:
            NoEnvironment: it can't be made; that may heal.
        """
        lines = sorted({*map(str, wanted), *_own(wanted)})
        key = hashlib.sha256("\n".join([sys.version, *lines]).encode()).hexdigest()[:16]
        place = self._root / key
        async with self._making:
            if not place.exists():
                await self._make(place, lines)
        return place / "bin" / "python"

    async def _make(self, place: Path, lines: Sequence[str]) -> None:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if uv is None:
            raise NoEnvironment("it needs an environment of its own, and uv, which makes those, is not here")
        log.info("an environment is made for: %s", ", ".join(lines))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._root, prefix="making-") as new:
                made = Path(new) / "environment"
                await _run(uv, "venv", "--quiet", "--python", sys.executable, str(made))
                binary = ["--only-binary", ":all:"] if self._strict else []
                python = str(made / "bin" / "python")
                await _run(uv, "pip", "install", "--quiet", *binary, "--python", python, *lines)
                # All that it takes from this installation is this package.
                (made / "front").mkdir()
                (made / "front" / "serving").symlink_to(Path(serving.__file__).parent)
                with suppress(FileExistsError):  # another front was faster
                    made.rename(place)
        except OSError as error:
            raise NoEnvironment(f"no environment could be made for it: {error}") from error


def _own(wanted: Sequence[Requirement]) -> list[str]:
    names = {canonicalize_name(each.name) for each in wanted}
    own = [name for name in _OWN if name not in names]
    return own if names & {*_MLFLOW} else [*own, f"mlflow=={version('mlflow')}"]


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        raise NoEnvironment(f"its requirements were not installed after {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        told = " ".join(said.decode(errors="replace").split())[:_TOLD]
        raise NoEnvironment(f"its requirements can't be installed: {told}")
