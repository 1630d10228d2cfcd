"""Values that a column accepts: the JSON values of each signature type, and schema keywords."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from serving.errors import Malformed, Unprocessable
from serving.promotion_errors import UnsupportedSignature
from serving.types.scalars import FLOAT32_MAX
from tests.support.contracts import TYPES, contract

INT32, INT64 = 2**31, 2**63
at = datetime.fromisoformat

TAKEN: list[tuple[str, str, Any]] = [
    ("boolean", "true", True),
    ("boolean", "false", False),
    *[(kind, "0", 0) for kind in ("integer", "long")],
    *[(kind, "-0", 0) for kind in ("integer", "long")],
    ("integer", str(INT32 - 1), INT32 - 1),
    ("integer", str(-INT32), -INT32),
    ("long", str(INT64 - 1), INT64 - 1),
    ("long", str(-INT64), -INT64),
    *[(kind, "1", 1.0) for kind in ("float", "double")],
    *[(kind, "-0.5", -0.5) for kind in ("float", "double")],
    *[(kind, "1e3", 1000.0) for kind in ("float", "double")],
    *[(kind, text, 1000) for kind in ("integer", "long") for text in ("1e3", "1000.0")],
    ("float", repr(FLOAT32_MAX), FLOAT32_MAX),
    ("double", "1.7976931348623157e308", 1.7976931348623157e308),
    ("double", str(2**53), float(2**53)),
    ("double", "5e-324", 5e-324),
    ("double", "1e-999", 0.0),
    ("string", '""', ""),
    ("string", '"1.5"', "1.5"),
    ("string", r'"a\u0000\n\"Ж😀"', 'a\0\n"Ж😀'),
    ("string", r'"\ud83d\ude00"', "😀"),
    ("binary", '""', b""),
    ("binary", '"AP8="', b"\x00\xff"),
    ("binary", r'"AP8A\n/w=="', b"\x00\xff\x00\xff"),
    ("datetime", '"2026-01-31"', at("2026-01-31T00:00:00")),
    ("datetime", '"2026-01-31T12:30"', at("2026-01-31T12:30:00")),
    ("datetime", '"2026-01-31 12:30:15.123456"', at("2026-01-31T12:30:15.123456")),
    ("datetime", '"2026-01-31T12:30:00Z"', at("2026-01-31T12:30:00")),
    ("datetime", '"2026-01-31T12:30:00+02:00"', at("2026-01-31T10:30:00")),
    ("datetime", '"2026-01-01T00:30:00+02:00"', at("2025-12-31T22:30:00")),
    ("datetime", '"1678-01-01"', at("1678-01-01T00:00:00")),
    ("datetime", '"2261-12-31T23:59:59.999999-12:00"', at("2262-01-01T11:59:59.999999")),
]

NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", f"1{'0' * 400}"]
NO_NUMBER = ["true", "false", '"1"', '"1.5"', '"nan"', '""', "[]", "[1]", "{}"]
REFUSED: dict[str, list[str]] = {
    "boolean": ["1", "0", "1.0", '"true"', '"false"', '"True"', '""', "[]", "{}", "NaN"],
    "integer": [*NO_NUMBER, *NOT_FINITE, "1.9", "1e-3", "1e10", str(INT32), str(-INT32 - 1), str(2**64)],
    "long": [*NO_NUMBER, *NOT_FINITE, "1.9", "1e-3", "1e300", str(INT64), str(-INT64 - 1), str(2**70)],
    "float": [*NO_NUMBER, *NOT_FINITE, "3.5e38", "-3.5e38", "1e39"],
    "double": [*NO_NUMBER, *NOT_FINITE],
    "string": ["1", "1.5", "true", "[]", "{}", "NaN"],
    "binary": ["1", "true", '"AP8"', '"A"', '"AP8=="', '"****"', '"AP8 ="', '"AP-_"', '"Ж"', "[0]"],
    "datetime": [
        *("1", "1767225600", "true", "[]", '""', '"now"', '"20260131"', '"1767225600"', '"2026"'),
        *('"2026-01"', '"12:30"', '"2026-W05-6"', '"2026-031"', '"2026-01-31T"', '"2026-01-31Z"'),
        *('"2026-13-01"', '"2026-02-30"', '"2026-01-31T25:00"', '"31.01.2026"', '"01/31/2026"'),
        *('"1677-12-31"', '"2262-01-01"', '"0001-01-01"', '"9999-12-31"', '"2026-01-31T12:00+99:00"'),
    ],
}


def read(kind: str, value: str, words: dict[str, Any] | None = None) -> Any:
    found = contract(f"it: {kind}", {"it": words} if words else None).read_row(b'{"it": %s}' % value.encode())
    return found["it"]


@pytest.mark.parametrize(("kind", "value", "expected"), TAKEN)
@pytest.mark.parametrize("mark", ["", "?"], ids=["required", "optional"])
def test_valid_value_is_accepted(kind: str, mark: str, value: str, expected: Any) -> None:
    found = read(kind + mark, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind in TYPES for value in REFUSED[kind]])
@pytest.mark.parametrize("mark", ["", "?"], ids=["required", "optional"])
def test_invalid_value_is_rejected(kind: str, mark: str, value: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        read(kind + mark, value)
    (fault,) = refused.value.faults
    assert fault.loc == ("it",)
    assert fault.msg.startswith("Input should ")


@pytest.mark.parametrize("kind", ["integer", "long", "double"])
def test_integer_of_five_thousand_digits_is_malformed(kind: str) -> None:
    with pytest.raises(Malformed):
        read(kind, "9" * 5000)


WHOLE_NUMBERS = ("integer", "long")
"""The types for which pyfunc rejects null."""


@pytest.mark.parametrize("kind", TYPES)
def test_null_is_accepted_in_optional_columns(kind: str) -> None:
    if kind not in WHOLE_NUMBERS:
        assert read(f"{kind}?", "null") is None
    with pytest.raises(Unprocessable):
        read(kind, "null")


@pytest.mark.parametrize("kind", WHOLE_NUMBERS)
def test_null_is_rejected_in_optional_integer_columns(kind: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        read(f"{kind}?", "null")
    assert refused.value.faults[0].msg == "MLflow accepts no null in a column of this type: omit the field"


@pytest.mark.parametrize("kind", TYPES)
def test_only_optional_columns_may_be_omitted(kind: str) -> None:
    assert contract(f"it: {kind}?").read_row(b"{}") == {}
    with pytest.raises(Unprocessable) as refused:
        contract(f"it: {kind}").read_row(b"{}")
    assert refused.value.faults[0].msg == "Field required"


# -- schema keywords of the metadata

NUMBERS = ("integer", "long", "float", "double")
NO_ENUMS: tuple[Any, ...] = (5, "abc", [], {}, None)
"""Values that the keyword `enum` must not have."""


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(
    ("words", "taken", "refused"),
    [
        ({"minimum": 5}, "5", "4"),
        ({"minimum": 5.0}, "5", "4"),
        ({"maximum": 5}, "5", "6"),
        ({"exclusiveMinimum": 5}, "6", "5"),
        ({"exclusiveMaximum": 5}, "4", "5"),
        ({"minimum": 5, "exclusiveMinimum": 6}, "7", "6"),
        ({"minimum": 5, "maximum": 5}, "5", "6"),
        ({"multipleOf": 3}, "-9", "10"),
        ({"enum": [1, 2]}, "2", "3"),
    ],
    ids=str,
)
def test_keywords_constrain_numbers(kind: str, words: dict[str, Any], taken: str, refused: str) -> None:
    read(kind, taken, words)
    if kind not in WHOLE_NUMBERS:
        read(f"{kind}?", "null", words)
    for mark in ("", "?"):
        with pytest.raises(Unprocessable, match="1 value does not match"):
            read(kind + mark, refused, words)


@pytest.mark.parametrize(
    ("words", "taken", "refused"),
    [
        ({"minLength": 2}, "жж", "ж"),
        ({"maxLength": 2}, "жж", "жжж"),
        ({"pattern": "^[a-z]+$"}, "abc", "abC"),
        ({"pattern": "b"}, "abc", "ac"),
        ({"enum": ["a", "b"]}, "b", "ab"),
    ],
    ids=str,
)
def test_keywords_constrain_strings(words: dict[str, Any], taken: str, refused: str) -> None:
    read("string", json.dumps(taken), words)
    with pytest.raises(Unprocessable):
        read("string", json.dumps(refused), words)


def test_enum_constrains_booleans() -> None:
    read("boolean", "true", {"enum": [True]})
    for other in ("false", "1"):
        with pytest.raises(Unprocessable):
            read("boolean", other, {"enum": [True]})


@pytest.mark.parametrize(
    ("kind", "word", "bound", "value"),
    [
        ("integer", "minimum", -(2**40), -INT32 - 1),
        ("integer", "maximum", 2**40, INT32),
        ("integer", "exclusiveMaximum", 2**40, INT32),
        ("long", "minimum", -(2**70), -INT64 - 1),
        ("long", "maximum", 2**70, INT64),
        ("float", "minimum", -1e300, "-1e39"),
        ("float", "maximum", 1e300, "1e39"),
    ],
)
def test_bounds_cannot_exceed_the_range_of_the_type(
    kind: str, word: str, bound: float, value: object
) -> None:
    with pytest.raises(Unprocessable):
        read(kind, str(value), {word: bound})


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        *[
            (kind, "minimum", value)
            for kind in NUMBERS
            for value in ("5", True, None, [5], float("nan"), 10**309)
        ],
        ("double", "exclusiveMaximum", float("inf")),
        ("long", "maximum", 0.5),
        ("integer", "multipleOf", 1.5),
        *[(kind, "multipleOf", value) for kind in NUMBERS for value in (0, -1)],
        *[(kind, "enum", value) for kind in (*NUMBERS, "string", "boolean") for value in NO_ENUMS],
        ("long", "enum", [1, "2"]),
        ("long", "enum", [True]),
        ("boolean", "enum", [1]),
        ("double", "enum", [float("nan")]),
        ("string", "enum", [["a"]]),
        *[("string", "minLength", value) for value in (-1, 1.5, "1", True, 2**70)],
        *[("string", "pattern", value) for value in ("(", "(?=a)", 5, None)],
        *[(kind, word, 5) for kind in TYPES for word in ("title", "description", "unit", "examples")],
        ("double", "examples", [float("nan")]),
        ("datetime", "examples", [at("2026-01-31T00:00:00")]),
    ],
    ids=str,
)
def test_invalid_keyword_value_is_rejected_with_a_suggestion(kind: str, word: str, value: Any) -> None:
    with pytest.raises(UnsupportedSignature) as refused:
        contract(f"it: {kind}", {"it": {word: value}})
    message = str(refused.value)
    assert message.startswith(f"metadata serving.inputs.it.{word} is ")
    assert ": write a " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("double", "min"),
        ("double", "minLength"),
        ("double", "pattern"),
        ("boolean", "minimum"),
        ("string", "minimum"),
        ("string", "format"),
        ("binary", "maxLength"),
        ("binary", "enum"),
        ("datetime", "minimum"),
        ("datetime", "enum"),
        ("double", "type"),
        ("double", 5),
    ],
)
def test_inapplicable_keyword_is_rejected_with_alternatives(kind: str, word: Any) -> None:
    with pytest.raises(UnsupportedSignature, match=f"does not apply to a {kind}: use .*description.*unit"):
        contract(f"it: {kind}", {"it": {word: 1}})


# -- JSON Schema


def schema(kind: str, words: dict[str, Any] | None = None) -> dict[str, Any]:
    row = contract(f"it: {kind}", {"it": words or {}}).row
    document = TypeAdapter[Any](row).json_schema()
    found: dict[str, Any] = json.loads(json.dumps(document["properties"]["it"]))
    assert ("it" in document.get("required", [])) is not kind.endswith("?")
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("boolean", {"type": "boolean"}),
        ("integer", {"type": "integer", "format": "int32", "minimum": -INT32, "maximum": INT32 - 1}),
        ("long", {"type": "integer", "format": "int64", "minimum": -INT64, "maximum": INT64 - 1}),
        ("float", {"type": "number", "format": "float", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}),
        ("double", {"type": "number", "format": "double"}),
        ("string", {"type": "string"}),
        ("binary", {"type": "string", "contentEncoding": "base64"}),
        ("datetime", {"type": "string", "format": "date-time"}),
    ],
)
def test_types_have_their_json_schema(kind: str, expected: dict[str, Any]) -> None:
    assert schema(kind) == {"title": "It"} | expected
    optional = expected["type"] if kind in WHOLE_NUMBERS else [expected["type"], "null"]
    assert schema(f"{kind}?") == {"title": "It"} | expected | {"type": optional}


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        (
            "double",
            {"exclusiveMinimum": 0, "maximum": 10, "unit": "cm"},
            {"type": "number", "format": "double", "exclusiveMinimum": 0, "maximum": 10, "unit": "cm"},
        ),
        (
            "string",
            {"title": "T", "description": "D", "examples": ["a"]},
            {"type": "string", "title": "T", "description": "D", "examples": ["a"]},
        ),
        ("string?", {"enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ("long", {"minimum": 0}, {"type": "integer", "format": "int64", "minimum": 0, "maximum": INT64 - 1}),
        (
            "integer",
            {"exclusiveMinimum": 0, "exclusiveMaximum": 9},
            {"type": "integer", "format": "int32", "exclusiveMinimum": 0, "exclusiveMaximum": 9},
        ),
        (
            "integer",
            {"minimum": -(2**40), "exclusiveMaximum": 2**40},
            {
                "type": "integer",
                "format": "int32",
                "minimum": -INT32,
                "maximum": INT32 - 1,
                "exclusiveMaximum": 2**40,
            },
        ),
    ],
    ids=str,
)
def test_keywords_appear_in_the_json_schema(
    kind: str, words: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert schema(kind, words) == {"title": "It"} | expected
