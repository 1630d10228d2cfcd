"""Virtual environments of the peers, created once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

FOLDER = platformdirs.user_cache_path("mlflow-serving-front") / "peers"
"""Default folder of the environments."""

_INSTALLED = "installed"
_INSTALL_TIMEOUT_SECONDS = 1800
_MAX_REASON_LENGTH = 120
_REASON_PREFIXES = (
    "because",
    "error",
    "failed",
)  # beginnings of such lines from uv and pip, the most specific first
_VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({each.name: each.version for each in distributions()}))
"""


class NotInstalled(Exception):
    """Raised when an environment cannot be created here; the message is short."""


def environment(folder: Path, name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of an environment with these requirements, and create the environment if necessary.

    It uses uv if available, otherwise venv and pip, each with its configured index.

    Raises:
        NotInstalled: The requirements cannot be installed here.
    """
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    place = folder / f"{name.lower().replace(' ', '-')}-{key}"
    python = place / "bin" / "python"
    if (place / _INSTALLED).exists():
        return python
    place.parent.mkdir(parents=True, exist_ok=True)
    for command in _commands(place, python, requirements):
        _run(command)
    (place / _INSTALLED).write_text("\n".join(requirements))
    return python


def merge_requirements(model: Sequence[str], peer: Sequence[str]) -> list[str]:
    """Return the requirements of the model and the peer; the peer's pin wins where both name a package."""
    pinned = {_name(requirement) for requirement in peer}
    return [*peer, *(requirement for requirement in model if _name(requirement) not in pinned)]


def versions(python: Path) -> Mapping[str, str]:
    """Return the versions of all installed packages, by name."""
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    results: dict[str, str] = json.loads(done.stdout)
    return dict(sorted(results.items(), key=lambda package: package[0].lower()))


def failure_reason(output: str) -> str:
    """Return the reason in an installer's output as one line, without addresses and paths."""
    lines = [stripped for line in output.splitlines() if (stripped := line.strip(" ×╰─▶│"))]
    reasons = [line for word in _REASON_PREFIXES for line in lines if line.lower().startswith(word)]
    line = next(iter([*reasons, *lines]), "no reason given")
    line = re.sub(r"^error:\s*|\s*\(from versions:.*", "", line, flags=re.IGNORECASE)
    return re.sub(r"\w+://\S+|(?<!\S)/\S+", "…", line)[:_MAX_REASON_LENGTH]


def _commands(place: Path, python: Path, requirements: Sequence[str]) -> list[list[str]]:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    uv = shutil.which("uv", path=beside)
    if uv:
        return [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *requirements],
        ]
    return [
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    ]


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_INSTALL_TIMEOUT_SECONDS)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(failure_reason(error.stderr)) from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not done within {_INSTALL_TIMEOUT_SECONDS} s") from None


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
