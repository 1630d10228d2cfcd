"""Failures in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = "import pytest\n\n{mark}\ndef test_it():\n    pytest.skip('not today')\n"
OPTIONAL = "@pytest.mark.optional"


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "workers"])
@pytest.mark.parametrize(
    ("ci", "mark", "status"),
    [("", "", 0), ("true", "", 1), ("true", OPTIONAL, 0)],
    ids=["here", "CI", "optional"],
)
def test_skipped_test_fails_in_ci(
    tmp_path: Path, ci: str, mark: str, status: int, workers: list[str]
) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(SKIPPING.format(mark=mark))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "--rootdir",
        tmp_path,
        *workers,
        "test_it.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True)
    assert done.returncode == status
    assert "1 skipped" in done.stdout
