"""The files that editors, contributors and package tools read."""

from __future__ import annotations

import configparser
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))


@pytest.mark.parametrize("package", ["serving", "training"])
def test_packages_declare_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").read_bytes() == b""
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["*"]
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_project_urls_name_no_real_host() -> None:
    urls = PROJECT["project"]["urls"]
    assert {"Documentation", "Source", "Issues", "Changelog"} == {*urls}
    assert all(url.startswith("https://mlflow-serving-front.example/") for url in urls.values())


def test_pre_commit_runs_the_project_tools_only() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    checks = (ROOT / "scripts" / "check").read_text()
    for hook in hooks:
        python, option, tool, *arguments = shlex.split(hook["entry"])
        assert (python, option, hook["language"]) == (".venv/bin/python", "-m", "system")
        assert tool in checks or tool == "pytest"
        for path in arguments:
            assert not path.startswith("tests/") or (ROOT / path).is_file()


def test_editors_use_the_line_length_of_the_linter() -> None:
    config = configparser.ConfigParser()
    config.read_string("[*top*]\n" + (ROOT / ".editorconfig").read_text())
    assert config["*top*"].getboolean("root")
    assert config["*.{py,pyi}"].getint("max_line_length") == PROJECT["tool"]["ruff"]["line-length"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    identifiers = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(identifiers) == len({*identifiers}) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown"}
        assert "value" in field["attributes"] if field["type"] == "markdown" else field["attributes"]["label"]


def test_contributors_read_where_to_report() -> None:
    assert "Report a vulnerability" in (ROOT / "SECURITY.md").read_text()
    assert "SECURITY.md" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text()
    assert "CHANGELOG.md" in (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
