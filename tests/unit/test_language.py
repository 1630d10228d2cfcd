"""Limits on dialect words in docstrings and comments, and on the names of constants.

`python tests/unit/test_language.py FOLDER …` prints the lines that use a dialect word, for editors.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
FOLDERS = ("serving", "training", "benchmarks", "tests")
MAX_PER_THOUSAND_WORDS = 0.5
DIALECT = {
    "tell": "tell|tells|telling|told",
    "answer": "answer|answers|answered|answering|answerable|unanswered",
    "say": "say|says|saying|said",
    "nobody": "nobody|whoever|whatever",
    "asked": "asked",
}
# A quoted identifier or option is no prose.
CODE = re.compile(r"``.*?``|`[^`]*`", re.DOTALL)
WORD = re.compile(r"[A-Za-z][A-Za-z'’]*")
PATTERNS = {
    name: re.compile(rf"(?<![\w-])(?:{forms})(?![\w-])", re.IGNORECASE) for name, forms in DIALECT.items()
}
BAD_CONSTANT = re.compile(r"_?(?:MOST|LEAST|FEWEST|LONGEST)_[A-Z0-9_]*")


class Prose(NamedTuple):
    """One line of a docstring or comment."""

    path: Path
    line: int
    text: str


def sources(folder: Path) -> list[Path]:
    """Return the Python files of a folder, without generated and cached ones."""
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.py"))
    return [path for path in paths if not path.name.endswith("_pb2.py") and "__pycache__" not in path.parts]


def prose(path: Path) -> Iterator[Prose]:
    """Yield the lines of the docstrings and comments of a file."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0].value  # type: ignore[attr-defined]  # get_docstring verified it
            text = CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), docstring.value)
            for offset, line in enumerate(text.splitlines()):
                yield Prose(path, docstring.lineno + offset, line)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(path, token.start[0], CODE.sub(" ", token.string))


def dialect_words(text: str) -> Iterator[str]:
    """Yield the group of each dialect word in a text, once per use."""
    for name, pattern in PATTERNS.items():
        yield from (name for _ in pattern.finditer(text))


def constants(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of the variables of a file that have a forbidden prefix."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and BAD_CONSTANT.fullmatch(node.id):
            yield node.lineno, node.id


@cache
def words_and_uses(folder: Path) -> tuple[int, list[tuple[str, Prose]]]:
    """Return the number of words in the prose of a folder, and its dialect words by group."""
    lines = [line for path in sources(folder) for line in prose(path)]
    uses = [(name, line) for line in lines for name in dialect_words(line.text)]
    return sum(len(WORD.findall(line.text)) for line in lines), uses


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("group", DIALECT)
def test_dialect_words_are_rare(folder: str, group: str) -> None:
    words, found = words_and_uses(ROOT / folder)
    uses = [line for name, line in found if name == group]
    shown = "\n".join(f"{use.path}:{use.line}: {use.text.strip()}" for use in uses[:20])
    assert len(uses) < MAX_PER_THOUSAND_WORDS * words / 1000, shown


@pytest.mark.parametrize("folder", FOLDERS)
def test_constants_are_named_max_and_min(folder: str) -> None:
    assert [(path, *name) for path in sources(ROOT / folder) for name in constants(path)] == []


def test_only_docstrings_comments_and_constants_count(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        '"""Tell all: `told`.\n\nNobody said it.\n"""\nanswer = "told"  # asked\n_MOST_ROWS = 3\n'
    )

    uses = [(line.line, name) for line in prose(path) for name in dialect_words(line.text)]

    assert uses == [(1, "tell"), (3, "say"), (3, "nobody"), (5, "asked")]
    assert [*constants(path)] == [(6, "_MOST_ROWS")]


def report(folders: list[str]) -> int:
    """Print the offending lines of folders, then uses and rates; return the number of lines."""
    offences, words, uses = 0, 0, Counter[str]()
    for path in [path for folder in folders for path in sources(Path(folder))]:
        for line in prose(path):
            words += len(WORD.findall(line.text))
            if groups := [*dialect_words(line.text)]:
                offences += 1
                uses.update(groups)
                print(f"{path}:{line.line}: [{', '.join(groups)}] {line.text.strip()}")
        for number, name in constants(path):
            offences += 1
            print(f"{path}:{number}: [constant] {name}")
    rates = [f"{name}: {uses[name]} ({1000 * uses[name] / max(words, 1):.2f}/1000)" for name in DIALECT]
    print(f"{words} words;", *rates)
    return offences


if __name__ == "__main__":
    sys.exit(bool(report(sys.argv[1:] or [*FOLDERS])))
