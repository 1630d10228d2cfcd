"""Compare the documentation with the code, and check its links."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from serving.app import create_app
from serving.settings.settings import OPTIONS, Settings, env_name

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SCRIPTS = {*(path.name for path in (ROOT / "scripts").iterdir())}
MAX_STEPS = 12


def page_id(path: Path) -> str:
    """Return the name of a page for the test report."""
    return str(path.relative_to(ROOT))


def rows(page: Path, marker: str) -> list[list[str]]:
    """Return the cells of a table between two markers, without its two header lines."""
    table = page.read_text().partition(f"<!-- {marker} -->")[2].partition(f"<!-- /{marker} -->")[0]
    lines = table.strip().splitlines()[2:]
    assert lines, f"{page} has no table {marker}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# -- links


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MyST form them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize(
    "folder", [DOCS, *sorted(path for path in DOCS.iterdir() if (path / "index.md").exists())]
)
def test_every_page_is_in_the_navigation(folder: Path) -> None:
    (toctree,) = re.findall(r"```\{toctree\}\n(.*?)```", (folder / "index.md").read_text(), re.DOTALL)
    listed = {line for line in toctree.splitlines() if line and line[0] != ":"}
    pages = {path.stem for path in folder.glob("*.md")} - {"index"}
    assert {name for name in listed if "/" not in name} == pages


# -- names


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_settings_exist(page: Path) -> None:
    names = {*re.findall(r"\bSERVING_[A-Z_]+[A-Z]\b", page.read_text())}
    assert names - {env_name(name) for name in OPTIONS} == set()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_options_of_serving_exist(page: Path) -> None:
    options = {f"--{name.replace('_', '-')}" for name in OPTIONS} | {"--help"}
    for command in re.findall(r"(?:serving run|scripts/serve)((?: [^`#\n]+)?)", page.read_text()):
        assert {*re.findall(r"--[a-z-]+", command)} <= options, command


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_scripts_and_files_exist(page: Path) -> None:
    text = page.read_text()
    assert {*re.findall(r"\bscripts/([a-z]+)", text)} <= SCRIPTS
    for path in re.findall(r"\b(?:deploy|benchmarks|tests|training)/[\w/.-]+\w", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"\b(serving\.[a-z_.]+):app\b", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_metrics_exist(page: Path) -> None:
    metrics = {cells[0].strip("`") for cells in rows(DOCS / "reference" / "metrics.md", "metrics")}
    named = {*re.findall(r"`(serving_[a-z_]+[a-z])(?:\{[a-z,]+\})?`", page.read_text())}
    assert named <= metrics


def test_tags_exist() -> None:
    source = "".join(
        path.read_text() for folder in ("serving", "training") for path in (ROOT / folder).rglob("*.py")
    )
    for tag, *_ in rows(DOCS / "reference" / "tags.md", "tags"):
        assert f'"{tag.strip("`")}"' in source, tag


def test_glossary_defines_the_words_of_the_project() -> None:
    text = (DOCS / "glossary.md").read_text().lower()
    defined = " ".join(re.findall(r"^(.+)\n: ", text, re.MULTILINE))
    words = "front slot lease candidate gate probation reference contract live warm champion challenger"
    for word in f"{words} replica instance journal shadow canary".split():
        assert word in defined, word


@pytest.mark.parametrize(
    "word",
    [
        "tell|tells|told|telling",
        "answer|answers|answered",
        "say|says|said",
        "nobody|whoever|whatever",
        "asked",
    ],
)
def test_dialect_words_are_rare(word: str) -> None:
    text = " ".join(re.sub(r"`[^`]*`", "", prose(page)) for page in PAGES)
    uses = re.findall(rf"\b(?:{word})\b", text, re.IGNORECASE)
    assert len(uses) < 0.5 * len(re.findall(r"\b[a-zA-Z]+\b", text)) / 1000, uses


# -- tables


def test_every_setting_is_an_option() -> None:
    assert {*OPTIONS} == {*Settings.model_fields}


def test_generated_tables_match_the_code() -> None:
    tables = runpy.run_path(str(DOCS / "tables.py"))
    for name, (marker, generate) in tables["TABLES"].items():
        text = (DOCS / "reference" / name).read_text()
        assert tables["replaced"](text, marker, generate()) == text, "run `python docs/tables.py`"


def test_endpoints_match_the_routes(tmp_path: Path) -> None:
    urls = {
        "journal_url": f"sqlite:///{tmp_path}/journal.db",
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    settings: dict[str, Any] = {"store_dir": tmp_path, "webhook_secret": "secret"} | urls
    app = create_app(Settings(**settings))
    routes = {
        (method, re.sub(r"^/(page|swagger)/.*", r"/\1/{file}", route.path))  # type: ignore[attr-defined]
        for route in app.router.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    documented = set()
    for endpoint, *_ in rows(DOCS / "reference" / "endpoints.md", "endpoints"):
        method, _, paths = endpoint.replace("`", "").partition(" ")
        documented |= {(method, path) for path in paths.split(", ")}
    predictions = {path for method, path in documented - routes if method == "POST"}
    assert documented - {("POST", path) for path in predictions} == routes
    for path in predictions:
        assert app.predictions.match(
            path.format(name="iris", alias="champion", version="1", label="champion")
        ), path
    assert {re.sub(r"/iris(?=[/:])", "/{name}", path) for path in app.predictions._paths} <= predictions


# -- paths


def functions(path: Path) -> set[str]:
    """Return the names of the functions, classes and methods of a file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [
                member for member in node.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


@pytest.mark.parametrize("name", ["request-path", "promotion-path"])
def test_path_has_few_steps_that_exist(name: str) -> None:
    steps = rows(DOCS / "explanation" / f"{name}.md", "path")
    assert len(steps) <= MAX_STEPS
    missing = []
    for _, file, function in steps:
        path = ROOT / file.strip("`")
        if not path.is_file() or function.strip("`") not in functions(path):
            missing.append(f"{file} {function}")
    assert missing == []
