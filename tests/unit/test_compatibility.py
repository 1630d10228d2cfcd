"""Changes of a contract that break clients of the previous one, and compatible changes."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.types import ColSpec, ParamSpec, Schema, TensorSpec
from numpy import dtype

from serving.contract.compatibility import breaking_changes
from tests.support.contracts import contract

BASE = "a: double, b: long?"


def changes(
    old: str, new: str, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
) -> list[str]:
    return breaking_changes(contract(old, {"a": before or {}}), contract(new, {"a": after or {}}))


@pytest.mark.parametrize(
    ("new", "change"),
    [
        ("b: long?", "input 'a' was removed"),
        ("a: string, b: long?", "input 'a' changed from double to string"),
        ("a: long, b: long?", "input 'a' changed from double to long"),
        ("a: float, b: long?", "input 'a' changed from double to float"),
        ("a: double, b: integer?", "input 'b' changed from long to integer"),
        ("a: double, b: long", "input 'b' was optional and is now required"),
        ("a: double, b: long?, c: string", "input 'c' is new and required"),
    ],
)
def test_inputs_that_clients_do_not_send_break(new: str, change: str) -> None:
    assert breaking_changes(contract(BASE), contract(new)) == [change]


@pytest.mark.parametrize(
    "new",
    [
        BASE,
        "b: long?, a: double",
        "a: double?, b: long?",
        "a: double, b: double?",
        "a: double, b: long?, c: string?",
    ],
)
def test_wider_inputs_are_compatible(new: str) -> None:
    assert breaking_changes(contract(BASE), contract(new)) == []


@pytest.mark.parametrize(
    ("old", "new", "compatible"),
    [
        ("integer", "long", True),
        ("integer", "double", True),
        ("long", "double", True),
        ("float", "double", True),
        ("long", "integer", False),
        ("double", "float", False),
        ("boolean", "long", False),
        ("string", "binary", False),
        ("datetime", "string", False),
    ],
)
def test_type_may_only_widen(old: str, new: str, compatible: bool) -> None:
    assert (not changes(f"a: {old}", f"a: {new}")) is compatible


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("double", {}, {"minimum": 0}),
        ("double", {"minimum": 0}, {"minimum": 1}),
        ("double", {"minimum": 0}, {"exclusiveMinimum": 0}),
        ("double", {"exclusiveMaximum": 10}, {"maximum": 9}),
        ("double", {"maximum": 10}, {"exclusiveMaximum": 10}),
        ("long", {}, {"multipleOf": 2}),
        ("long", {"multipleOf": 2}, {"multipleOf": 4}),
        ("string", {}, {"minLength": 1}),
        ("string", {"maxLength": 9}, {"maxLength": 8}),
        ("string", {}, {"pattern": "^a"}),
        ("string", {"pattern": "^a"}, {"pattern": "^ab"}),
        ("string", {}, {"enum": ["x"]}),
        ("string", {"enum": ["x", "y"]}, {"enum": ["x"]}),
    ],
)
def test_only_narrower_ranges_break(kind: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    (change,) = changes(f"a: {kind}", f"a: {kind}", before, after)
    assert change.startswith("input 'a' accepts fewer values: ")
    if not {"pattern", "multipleOf"} & before.keys():
        assert changes(f"a: {kind}", f"a: {kind}", after, before) == []


@pytest.mark.parametrize("words", [{"description": "new"}, {"unit": "mm"}, {"title": "A"}])
def test_changed_descriptions_are_compatible(words: dict[str, Any]) -> None:
    assert changes("a: double", "a: double", {"description": "old"}, words) == []


def test_only_new_parameters_are_compatible() -> None:
    without, half = contract("a: double"), contract("a: double", params=[ParamSpec("p", "double", 0.5)])
    text = contract("a: double", params=[ParamSpec("p", "string", "x")])
    assert breaking_changes(without, half) == []
    assert breaking_changes(half, without) == ["parameter 'p' was removed"]
    assert breaking_changes(half, text) == ["parameter 'p' changed its type"]


def test_changed_outputs_break() -> None:
    number = contract("a: double", outputs=Schema([ColSpec("double")]))
    text = contract("a: double", outputs=Schema([ColSpec("string")]))
    (change,) = breaking_changes(number, text)
    assert change == "the output changed from a value (number) to a value (string)"


def test_changed_classes_break() -> None:
    outputs = Schema([TensorSpec(dtype("float64"), (-1, 2))])
    old, new = (
        contract("a: double", outputs=outputs, task="classification", classes=classes)
        for classes in (["cat", "dog"], ["cat", "cow"])
    )
    (change,) = breaking_changes(old, new)
    assert "cat, dog" in change
    assert "cat, cow" in change
