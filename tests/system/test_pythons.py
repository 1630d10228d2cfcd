"""The script that repeats a part of the tests on other Pythons."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "pythons"


def test_missing_python_is_named() -> None:
    done = subprocess.run([SCRIPT, "3.99"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "scripts/pythons: there is no Python 3.99\n")


def test_installed_pythons_are_listed_and_run() -> None:
    listed = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True)
    for program in listed.stdout.splitlines():
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        assert version.startswith(f"Python {Path(program).name.removeprefix('python')}.")
