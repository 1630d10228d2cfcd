"""Versions with hostile files are rejected with a reason and affect no request."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.version import TAGS_OF_FRONT
from tests.support.promotions import Callers, Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import served

DEEP = 100_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def model(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("hostile")
    registry = Registry(new_registry(folder))
    registry.promote("actor", registry.add("actor", factor=1.0))
    with served(registry.uri, folder, models="models:/actor/Production", poll_seconds=0.1) as service:
        service.until_ready()
        yield Model("actor", service, registry)


def rejection(model: Model, change: Callable[[Path], None]) -> str:
    """Promote a version whose files were changed, and return why it was rejected."""
    template = model.registry.folder / "actor-0"
    folder = Path(shutil.copytree(template, template.with_name(f"hostile-{next(_numbers)}")))
    change(folder)
    version = model.registry.register("actor", folder)
    with Callers(model, 2) as callers:
        model.promote(version)
        reason = model.until_tagged(version, "rejected")["reason"]
    assert callers.faults == []
    model.promote("1")
    model.until(lambda state: state["candidate"] is None)
    assert model.is_well("1")
    assert len(reason) < 1000
    assert reason.isprintable()
    return reason


def replaced(text: str) -> Callable[[Path], None]:
    """Replace the MLmodel file."""

    def replace(folder: Path) -> None:
        (folder / "MLmodel").write_text(text)

    return replace


def extended(text: str) -> Callable[[Path], None]:
    """Append to the MLmodel file."""

    def append(folder: Path) -> None:
        with (folder / "MLmodel").open("a") as file:
            file.write(f"\n{text}\n")

    return append


def described(**facts: Any) -> Callable[[Path], None]:
    """Change entries of the MLmodel file."""

    def change(folder: Path) -> None:
        metadata = yaml.safe_load((folder / "MLmodel").read_text())
        for name, value in facts.items():
            metadata[name] = value(metadata) if callable(value) else value
        (folder / "MLmodel").write_text(yaml.safe_dump(metadata))

    return change


def signed(part: str, text: str) -> Callable[[Path], None]:
    """Replace a part of the signature."""
    return described(signature=lambda metadata: metadata["signature"] | {part: text})


def aliases(levels: int = 10, width: int = 10) -> str:
    """Return YAML whose aliases expand to `width` ** `levels` values."""
    lines = ["bomb:", f"  a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def columns(count: int) -> str:
    return json.dumps([{"name": f"c{n}", "type": "double", "required": True} for n in range(count)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replaced("[" * DEEP), "deeper"),
        (replaced("a: " + "{b: " * DEEP), "can't be read"),
        (replaced("- " * DEEP), "deeper"),
        (extended("deep: " + "[" * 2000 + "]" * 2000), "deeper"),
        (signed("inputs", "[" * DEEP), "deeper"),
        (signed("outputs", '{"a":' * DEEP), "deeper"),
    ],
    ids=["sequences", "mappings", "blocks", "entry", "signature", "outputs"],
)
def test_row_40_deep_nesting_is_rejected(model: Model, change: Callable[[Path], None], expected: str) -> None:
    assert expected in rejection(model, change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (extended(aliases()), "aliases expanded"),
        (extended(f"{aliases()}\nmetadata: {{serving: {{classes: *a9}}}}"), "aliases expanded"),
        (extended("loop: &loop [*loop]"), "alias"),
        (extended("number: " + "1:" * 295_000 + "1"), "a number or a date"),
        (extended("number: -" + "1:" * 295_000 + "1.5"), "a number or a date"),
        (extended("number: 0x" + "f" * 590_000), "a number or a date"),
        (extended("number: !!int '" + "1" * 590_000 + "'"), "the tag"),
        (extended("base: &base {a: 1}\nmerged: {<<: *base}"), "merge key"),
        (extended("code: !!python/object/apply:os.system ['true']"), "the tag"),
        (extended("flavors: {python_function: {loader_module: os}}"), "twice"),
        (extended("? [1, 2]\n: complex"), "not a single value"),
        (extended("moment: 9999-99-99"), "can't be read"),
        (lambda folder: (folder / "MLmodel").write_bytes(b"a: \xff\xfe") and None, "can't be read"),
        (lambda folder: os.truncate(folder / "MLmodel", 10**11), "larger than"),
        (signed("inputs", columns(100_000)), "columns|values|larger than"),
        (signed("inputs", columns(20_000)), "columns"),
        (signed("inputs", '[{"name": "x", "name": "y", "type": "double"}]'), "twice"),
        (signed("inputs", json.dumps([{"type": "double"} | {"name": 1e400}])), "|"),
        (described(metadata={"serving": {f"unknown{n}": n for n in range(40_000)}}), "unknown entries"),
        (described(metadata={"serving": {"task": "x" * 500_000}}), "serving.task"),
        (described(signature={"inputs": [1, 2]}), "signature"),
        (described(flavors="nothing"), "flavors|python_function"),
    ],
    ids=[
        "aliases",
        "classes",
        "recursive",
        "sexagesimal",
        "sexagesimal-float",
        "hexadecimal",
        "tagged",
        "merge",
        "python",
        "duplicate",
        "key",
        "date",
        "utf-8",
        "sparse",
        "columns",
        "fewer-columns",
        "json-duplicate",
        "infinite-name",
        "metadata",
        "task",
        "signature",
        "flavors",
    ],
)
def test_row_41_unbounded_content_is_rejected(
    model: Model, change: Callable[[Path], None], expected: str
) -> None:
    reason = rejection(model, change)
    assert any(part in reason for part in expected.split("|")), reason


def test_row_41_large_input_example_is_rejected(model: Model) -> None:
    def enlarge(folder: Path) -> None:
        os.truncate(folder / "serving_input_example.json", 10**8)

    assert "its input example can't be read: it is larger" in rejection(model, enlarge)


def test_row_41_deeply_nested_example_is_rejected(model: Model) -> None:
    def deepen(folder: Path) -> None:
        (folder / "serving_input_example.json").write_text('{"inputs": ' + "[" * DEEP + "]" * DEEP + "}")

    assert "its input example can't be read" in rejection(model, deepen)


GARBAGE = [
    "[" * 5000,
    '{"models:/actor/Production": "9999-12-31"}',
    "<script>alert(1)</script>",
    "\x1b[31m\u202e\x00",
]


@pytest.mark.parametrize("value", GARBAGE, ids=["deep", "future", "html", "control"])
def test_garbage_in_tags_is_ignored(model: Model, value: str) -> None:
    version = model.add()
    for name in (*TAGS_OF_FRONT, "serving.allow_breaking", "mlflow.note.content"):
        if name != "serving.state":
            model.registry.client.set_model_version_tag("actor", version, name, value)
    model.promote(version)
    model.until_live(version)
    assert model.is_well(version)
    model.promote("1")
    model.until_live("1")


def test_invalid_digest_is_rejected_with_bounded_reason(model: Model) -> None:
    version = model.add()
    model.registry.client.set_model_version_tag("actor", version, "serving.digest", "[" * 5000)
    model.promote(version)
    assert len(model.until_tagged(version, "rejected")["reason"]) < 1000
    model.settle()
