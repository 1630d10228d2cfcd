"""The script that repeats a part of the tests on other Pythons; the newest other one passes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "pythons"
HERE = f"python{sys.version_info.major}.{sys.version_info.minor}"


def installed() -> list[str]:
    """Return the interpreters that the script finds, oldest first."""
    listed = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_missing_python_is_named() -> None:
    done = subprocess.run([SCRIPT, "3.99"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "scripts/pythons: there is no Python 3.99\n")


def test_installed_pythons_are_listed() -> None:
    for program in installed():
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        assert version.startswith(f"Python {Path(program).name.removeprefix('python')}.")


@pytest.mark.optional
@pytest.mark.timeout(900)
def test_newest_other_python_passes_the_tests() -> None:
    """Run a part of the tests in a fresh environment from the constraints."""
    if not (others := [name for name in (Path(each).name for each in installed()) if name != HERE]):
        pytest.skip("no other Python is installed: uv python install 3.13")
    # The variables of this run of pytest would make the inner run a worker of it.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    version = others[-1].removeprefix("python")
    done = subprocess.run([SCRIPT, version], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
