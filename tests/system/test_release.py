"""`scripts/release` on a temporary repository, and the one version number of the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import serving
from serving.cli.main import app

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
CHANGELOG = """# Changelog

## [Unreleased]

### Added

- A feature.

## [0.1.0] - 2026-01-01

- The first release.
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git repository with the project's scripts, version and deployment files."""
    for variable in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{variable}_NAME", "Releaser")
        monkeypatch.setenv(f"GIT_{variable}_EMAIL", "releaser@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def release(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "scripts" / "release", *arguments], cwd=folder, capture_output=True, text=True
    )


def version_of(folder: Path) -> str:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]


def image_tags(folder: Path) -> set[str]:
    """Return the tags of the service's image in the deployment files."""
    tags = set()
    for path in (folder / "deploy").rglob("*.yaml"):
        text = path.read_text()
        tags |= set(re.findall(r"image: mlflow-serving-front:(\S+)", text))
        if path.name == "kustomization.yaml":
            images = yaml.safe_load(text).get("images", [])
            tags |= {image["newTag"] for image in images if image["name"] == "mlflow-serving-front"}
    return tags


def test_release_dates_the_notes_and_tags_the_commit(repository: Path) -> None:
    before = git(repository, "rev-parse", "HEAD")

    done = release(repository, "1.2.0")

    assert done.returncode == 0, done.stderr
    changelog = (repository / "CHANGELOG.md").read_text()
    today = datetime.now(UTC).date().isoformat()
    assert changelog == CHANGELOG.replace("[Unreleased]\n", f"[Unreleased]\n\n## [1.2.0] - {today}\n")
    assert version_of(repository) == "1.2.0"
    assert image_tags(repository) == {"1.2.0"}
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "log", "-1", "--format=%s%d").startswith(
        "Release 1.2.0 (HEAD -> main, tag: v1.2.0)"
    )
    assert git(repository, "rev-parse", "HEAD~1") == before
    changed = git(repository, "diff", "--numstat", "HEAD~1").split("\n")
    assert {line.split("\t")[2] for line in changed if line} == {
        "CHANGELOG.md",
        "pyproject.toml",
        *(
            str(path.relative_to(repository))
            for path in (repository / "deploy").rglob("*.yaml")
            if "1.2.0" in path.read_text()
        ),
    }
    assert all(line.split("\t")[0] in {"1", "2"} for line in changed if line)


def test_second_release_needs_new_notes(repository: Path) -> None:
    assert release(repository, "1.2.0").returncode == 0

    done = release(repository, "1.3.0")

    assert done.returncode == 1
    assert "no notes under [Unreleased]" in done.stderr
    assert version_of(repository) == "1.2.0"


@pytest.mark.parametrize("arguments", [(), ("1.2",), ("v1.2.0",), ("1.2.0", "now")])
def test_release_refuses_a_malformed_version(repository: Path, arguments: tuple[str, ...]) -> None:
    done = release(repository, *arguments)

    assert done.returncode == 1
    assert "usage: scripts/release VERSION" in done.stderr


def test_release_refuses_an_unclean_tree(repository: Path) -> None:
    (repository / "new.py").write_text("")

    done = release(repository, "1.2.0")

    assert done.returncode == 1
    assert "the working tree has changes" in done.stderr


def test_release_refuses_an_existing_tag(repository: Path) -> None:
    git(repository, "tag", "v1.2.0")

    done = release(repository, "1.2.0")

    assert done.returncode == 1
    assert "the tag v1.2.0 exists" in done.stderr


def test_there_is_one_version_number() -> None:
    assert serving.__version__ == version_of(ROOT)
    assert image_tags(ROOT) == {serving.__version__}
    assert CliRunner().invoke(app, ["--version"]).output == f"{serving.__version__}\n"
