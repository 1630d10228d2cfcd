"""Parses the files that describe a model version, within limits, in a separate process.

`main` reads `MLmodel`, the files of the environment and the input example in a folder, and writes one JSON
object to its output:

- `documents`: the content of each YAML file, by its name
- `texts`: the lines of each requirements file, by its name
- `example`: the input example, cut to its first rows
- `faults`: why a file was not read, by its name

It imports nothing heavy besides PyYAML, so that the process starts quickly. A crash, an endless loop or a
lack of memory affects only this process: `model_files` reports that the version cannot be read.
"""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from serving.contract.bounded_yaml import MAX_DEPTH, MAX_NODES, Refused, check_json, parse_yaml
from serving.text import shorten

MAX_YAML_BYTES = 2 * 2**20
MAX_TEXT_BYTES = 256 * 2**10
MAX_EXAMPLE_BYTES = 64 * 2**20
MAX_KEPT_EXAMPLE_BYTES = 4 * 2**20
MAX_OUTPUT_BYTES = 16 * 2**20
MAX_JSON_NODES = 500_000
MAX_LINES = 2000
MAX_LINE_LENGTH = 2000
MAX_REQUIREMENT_FILES = 20
MAX_EXAMPLE_ROWS = 100
MAX_REASON_LENGTH = 300

_LIMITS = (
    (resource.RLIMIT_AS, 2**30),
    (resource.RLIMIT_CPU, 3),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
)
_DOCUMENTS = ("MLmodel", "python_env.yaml", "conda.yaml")
_FILE_OPTION = re.compile(r"(?:-r|--requirement|-c|--constraint)[ =]+(\S+)$")


def main(folder: str) -> None:
    """Read the files in `folder` and write what they contain as JSON."""
    for resource_id, limit in _LIMITS:
        with suppress(OSError, ValueError):  # a lower limit is set, or the system does not have this one
            resource.setrlimit(resource_id, (limit, limit))
    documents: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for name in _DOCUMENTS:
        _attempt(partial(_document, folder, name), name, documents, faults)
    texts = _texts(folder, documents, faults)
    example: dict[str, Any] = {}
    _attempt(partial(_example, folder, documents.get("MLmodel")), "example", example, faults)
    content = {"documents": documents, "texts": texts, "faults": faults, **example}
    output = json.dumps(content).encode()
    if len(output) > MAX_OUTPUT_BYTES:
        failure = {"documents": {}, "texts": {}, "faults": {"MLmodel": "its content is too large"}}
        output = json.dumps(failure).encode()
    sys.stdout.buffer.write(output)
    sys.stdout.flush()


def _attempt(read: Callable[[], Any], name: str, contents: dict[str, Any], faults: dict[str, str]) -> None:
    try:
        content = read()
    except FileNotFoundError:
        return
    except MemoryError:
        faults[name] = "it needs too much memory"
    except RecursionError:
        faults[name] = f"it is nested deeper than {MAX_DEPTH} levels"
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        faults[name] = shorten("".join(char for char in text if char.isprintable()), MAX_REASON_LENGTH)
    else:
        if content is not None:
            contents[name] = content


def read_bounded(folder: str, name: str, max_bytes: int) -> bytes:
    """Return the content of a regular file below `folder`, without following links.

    Raises:
        Refused: It is not a regular file below `folder`, or is larger than `max_bytes`.
        OSError: It cannot be read.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Refused("it is outside the folder of the version")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for index, part in enumerate(parts):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            if index < len(parts) - 1:
                flags |= os.O_DIRECTORY
            child = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = child
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("it is not a regular file")
        if status.st_size > max_bytes:
            raise Refused(f"it is larger than {max_bytes} bytes")
        with open(handle, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise Refused(f"it is larger than {max_bytes} bytes")
        return content
    finally:
        os.close(handle)


# -- YAML


def _document(folder: str, name: str) -> dict[str, Any]:
    document = parse_yaml(read_bounded(folder, name, MAX_YAML_BYTES))
    if not isinstance(document, dict):
        raise Refused(f"its {name} is not a mapping")
    if name == "MLmodel" and isinstance(document.get("signature"), dict):
        for part, text in document["signature"].items():
            if isinstance(text, str):
                _check_signature(str(part), text)
    return document


def _check_signature(part: str, text: str) -> None:
    if len(text) > MAX_YAML_BYTES:
        raise Refused(f"its signature's {part[:50]} are larger than {MAX_YAML_BYTES} bytes")
    try:
        check_json(json.loads(text, object_pairs_hook=_unique), MAX_NODES)
    except RecursionError:
        raise Refused(f"its signature's {part[:50]} are nested deeper than {MAX_DEPTH} levels") from None
    except Refused as error:
        raise Refused(f"its signature's {part[:50]} can't be read: {error}") from None
    except ValueError:
        return  # `mlmodel.contract` reports the error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise Refused("an object has a key twice")
    return unique


# -- the input example


def _example(folder: str, mlmodel: dict[str, Any] | None) -> Any:
    info = mlmodel.get("saved_input_example_info") if mlmodel else None
    if not isinstance(info, dict):
        return None
    name = info.get("serving_input_path", info.get("artifact_path"))
    if not isinstance(name, str) or not name.endswith(".json"):
        return None
    logged = json.loads(read_bounded(folder, name, MAX_EXAMPLE_BYTES))
    rows = MAX_EXAMPLE_ROWS
    while True:
        cut = first_rows(logged, rows)
        if len(json.dumps(cut)) <= MAX_KEPT_EXAMPLE_BYTES:
            check_json(cut, MAX_JSON_NODES)
            return cut
        if rows == 1:
            raise Refused(f"its first row is larger than {MAX_KEPT_EXAMPLE_BYTES} bytes")
        rows //= 2


def first_rows(logged: Any, max_rows: int) -> Any:
    """Return the first rows of an example, in any of the forms in which MLflow writes one."""
    if isinstance(logged, list):
        return logged[:max_rows]
    if not isinstance(logged, dict):
        return logged
    cut = dict(logged)
    for name in ("data", "index", "instances", "dataframe_records"):
        if isinstance(cut.get(name), list):
            cut[name] = cut[name][:max_rows]
    for name in ("dataframe_split", "inputs"):
        if name in cut:
            cut[name] = _first_of_columns(first_rows(cut[name], max_rows), max_rows)
    return cut


def _first_of_columns(table: Any, max_rows: int) -> Any:
    """Return the first rows if the table is a dictionary of columns; otherwise return the table."""
    if not isinstance(table, dict) or not table:
        return table
    if not all(isinstance(column, list) for column in table.values()):
        return table
    lengths = {len(column) for column in table.values()}
    return {name: column[:max_rows] for name, column in table.items()} if len(lengths) == 1 else table


# -- requirements


def _texts(folder: str, documents: dict[str, Any], faults: dict[str, str]) -> dict[str, list[str]]:
    """Return the lines of `requirements.txt` and of the files that it and `python_env.yaml` refer to."""
    texts: dict[str, list[str]] = {}
    names = ["requirements.txt"]
    listed = documents.get("python_env.yaml", {}).get("dependencies")
    names += _referenced_files(listed if isinstance(listed, list) else [])
    for name in names:
        if name in texts or name in faults:
            continue
        if len(texts) >= MAX_REQUIREMENT_FILES:
            faults[name] = f"there are more than {MAX_REQUIREMENT_FILES} requirements files"
            break
        _attempt(partial(_lines, folder, name), name, texts, faults)
        names += _referenced_files(texts.get(name, ()))
    return texts


def _referenced_files(lines: Iterable[Any]) -> list[str]:
    matches = (_FILE_OPTION.match(line.strip()) for line in lines if isinstance(line, str))
    return [match[1] for match in matches if match]


def _lines(folder: str, name: str) -> list[str]:
    lines = read_bounded(folder, name, MAX_TEXT_BYTES).decode("utf-8").splitlines()
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE_LENGTH for line in lines):
        raise Refused(f"it has more than {MAX_LINES} lines, or one of more than {MAX_LINE_LENGTH} characters")
    return lines
