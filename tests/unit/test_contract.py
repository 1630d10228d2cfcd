"""Validation of requests against the contract of a model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.types import ParamSpec
from pydantic import TypeAdapter

from serving.errors import BodyTooLarge, Malformed, Unprocessable
from tests.support.contracts import MAX_ROWS, TYPES, contract

IRIS = contract(
    "sepal: double, petal: double?, note: string?, at: datetime?",
    {"sepal": {"exclusiveMinimum": 0, "maximum": 10, "description": "Sepal length in cm", "unit": "cm"}},
)
PARAMS = contract(
    "x: double",
    params=[
        ParamSpec("temperature", "double", 0.7),
        ParamSpec("top", "long", 3),
        ParamSpec("strict", "boolean", False),
        ParamSpec("mode", "string", "fast"),
        ParamSpec("since", "datetime", "2026-01-01"),
        ParamSpec("stops", "string", ["a"], (-1,)),
        ParamSpec("limits", "long", [1, 2], (-1,)),
    ],
)


def faults(refused: pytest.ExceptionInfo[Unprocessable]) -> dict[tuple[str | int, ...], str]:
    return {fault.loc: fault.msg for fault in refused.value.faults}


# -- malformed JSON

NO_JSON = {
    "nothing": b"",
    "blank": b"  \n",
    "no JSON": b"sepal=1",
    "Python": b"{'sepal': 1}",
    "a trailing comma": b'{"sepal": 1,}',
    "a comment": b'{"sepal": 1} // one',
    "two values": b'{"sepal": 1}{"sepal": 2}',
    "cut off": b'{"sepal": 1',
    "leading zero": b'{"sepal": 01}',
    "hexadecimal": b'{"sepal": 0x1}',
    "a byte order mark": b'\xef\xbb\xbf{"sepal": 1}',
    "UTF-16": '{"sepal": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"sepal": 1}'.encode("utf-16-le"),
    "UTF-32": '{"sepal": 1}'.encode("utf-32"),
    "invalid UTF-8": b'{"sepal": 1, "note": "\xff"}',
    "an overlong NUL": b'{"sepal": 1, "note": "\xc0\x80"}',
    "a surrogate in UTF-8": b'{"sepal": 1, "note": "\xed\xa0\x80"}',
    "a lone surrogate": rb'{"sepal": 1, "note": "\ud800"}',
    "a lone low surrogate": rb'{"sepal": 1, "note": "\udc00"}',
    "surrogates the wrong way round": rb'{"sepal": 1, "note": "\udc00\ud800"}',
    "a lone surrogate in a name": rb'{"sepal": 1, "\ud800": 1}',
    "a control character": b'{"sepal": 1, "note": "a\nb"}',
    "5,000 digits": b'{"sepal": 1%s}' % (b"0" * 5000),
    "250,000 brackets": b'{"sepal": %s' % (b"[" * 250_000),
    "250,000 nested objects": b'{"a":' * 250_000,
    "300 lists in each other": b'{"sepal": %s%s}' % (b"[" * 300, b"]" * 300),
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_invalid_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed) as row:
        IRIS.read_row(body)
    with pytest.raises(Malformed) as batch:
        IRIS.read_batch(b'{"rows": [%s]}' % body if body.strip() else body)
    assert str(row.value)
    assert str(batch.value)


@pytest.mark.parametrize("body", [b"null", b"1", b'"sepal"', b"[]", b'[{"sepal": 1}]', b"true"])
def test_non_objects_are_invalid(body: bytes) -> None:
    for read in (IRIS.read_row, IRIS.read_batch):
        with pytest.raises(Unprocessable) as refused:
            read(body)
        assert faults(refused) == {(): "Input should be an object"}


# -- names

TWICE = {
    "required": b'{"sepal": 1, "sepal": 1}',
    "the first does not fit": b'{"sepal": "x", "sepal": 1}',
    "optional": b'{"sepal": 1, "petal": 1, "petal": 2}',
    "as many as columns": b'{"sepal": 1, "petal": 1, "petal": 2, "note": "a", "at": "2026-01-01"}',
    "beside colons in a text": b'{"sepal": 1, "sepal": 2, "note": "a:b:c"}',
    "beside colons in a datetime": b'{"sepal": 1, "sepal": 2, "at": "2026-01-01T10:00:00"}',
    "one escaped": rb'{"sepal": 1, "s\u0065pal": 2}',
    "a null": b'{"sepal": 1, "note": null, "note": null}',
}


@pytest.mark.parametrize("row", TWICE.values(), ids=TWICE)
def test_duplicate_field_is_malformed(row: bytes) -> None:
    batches = [
        b'{"rows": [%s]}' % row,
        b'{"rows": [{"sepal": 1}, %s, {"sepal": 3}]}' % row,
        b'{"rows": [{"sepal": 1, "note": ":::"}, %s]}' % row,
    ]
    for read, body in [(IRIS.read_row, row), *((IRIS.read_batch, batch) for batch in batches)]:
        with pytest.raises(Malformed, match="named twice"):
            read(body)


def test_duplicate_rows_are_malformed() -> None:
    with pytest.raises(Malformed, match="named twice"):
        IRIS.read_batch(b'{"rows": [{"sepal": 1}], "rows": [{"sepal": 2}]}')


def test_duplicate_params_are_malformed() -> None:
    for params in (b'{"top": 1, "top": 2}', b'{"mode": ":", "top": 1, "top": 2}'):
        with pytest.raises(Malformed, match="named twice"):
            PARAMS.read_batch(b'{"rows": [{"x": 1}], "params": %s}' % params)


@pytest.mark.parametrize("note", [":", "a:b", ":::::", '"note":', "\\u003a", "{:}"])
def test_colons_in_a_text_are_not_names(note: str) -> None:
    row = {"sepal": 1.0, "note": note}
    body = json.dumps(row).encode()
    assert IRIS.read_row(body) == row
    assert IRIS.read_batch(b'{"rows": [%s, %s]}' % (body, body)) == ([row, row], {})


@pytest.mark.parametrize("escaped", ["a:b", r"a\u003ab", r"\u0061\u003A\u0062"])
def test_column_name_may_contain_a_colon(escaped: str) -> None:
    colons = contract("a:b: double, c: double?")
    assert colons.read_row(b'{"%s": 1}' % escaped.encode()) == {"a:b": 1.0}
    for twice in (b'{"a:b": 1, "%s": 2}', b'{"%s": 1, "a:b": 2, "c": 3}'):
        with pytest.raises(Malformed):
            colons.read_row(twice % escaped.encode())
        with pytest.raises(Malformed):
            colons.read_batch(b'{"rows": [%s]}' % (twice % escaped.encode()))


@given(
    st.lists(st.tuples(st.sampled_from(["sepal", "petal", "note"]), st.booleans()), max_size=6),
    st.text(':ab"\\', max_size=5),
)
def test_row_is_read_unless_a_name_repeats(names: list[tuple[str, bool]], text: str) -> None:
    pairs = [("sepal", False), *names]
    spelt = [f'"\\u{ord(name[0]):04x}{name[1:]}"' if escaped else f'"{name}"' for name, escaped in pairs]
    values = [json.dumps(text) if name == "note" else "1" for name, _ in pairs]
    fields = ", ".join(f"{name}: {value}" for name, value in zip(spelt, values, strict=True))
    body = f"{{{fields}}}"
    unique = len({name for name, _ in pairs}) == len(pairs)
    for read, sent in ((IRIS.read_row, body), (IRIS.read_batch, f'{{"rows": [{body}]}}')):
        try:
            read(sent.encode())
        except Malformed:
            assert not unique
        else:
            assert unique


@pytest.mark.parametrize(
    ("row", "unknown"),
    [
        ('{"sepal": 1, "color": "red"}', "color"),
        ('{"sepal": 1, "Sepal": 1}', "Sepal"),
        ('{"sepal": 1, "sepal ": 1}', "sepal "),
        ('{"sepal": 1, "": 1}', ""),
        ('{"sepal": 1, "rows": []}', "rows"),
    ],
)
def test_unknown_field_is_invalid(row: str, unknown: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_row(row.encode())
    assert faults(refused) == {(unknown,): "Extra inputs are not permitted"}
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_batch(f'{{"rows": [{{"sepal": 1}}, {row}]}}'.encode())
    assert faults(refused) == {("rows", 1, unknown): "Extra inputs are not permitted"}


def test_columns_with_unusual_names_are_read() -> None:
    names = ["sepal length (cm)", "class", "_private", "__init__", "1", "ж", "a.b", "self", "items"]
    odd = contract(", ".join(f"{name}: double" for name in names))
    row = dict.fromkeys(names, 1.0)
    assert odd.read_row(json.dumps(row).encode()) == row
    assert [*TypeAdapter(odd.row).json_schema()["properties"]] == names


# -- errors


def test_all_errors_of_a_row_have_locations() -> None:
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_row(b'{"sepal": 11, "petal": "1", "at": "now", "extra": 1}')
    assert str(refused.value) == "4 values do not match the contract of model iris."
    assert faults(refused) == {
        ("sepal",): "Input should be less than or equal to 10",
        ("petal",): "Input should be a valid number",
        ("at",): "Input should be an ISO 8601 date or datetime",
        ("extra",): "Extra inputs are not permitted",
    }


def test_batch_error_locates_the_first_invalid_row() -> None:
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_batch(b'{"rows": [{"sepal": 1}, {"sepal": 0}, {"sepal": 0}]}')
    assert faults(refused) == {("rows", 1, "sepal"): "Input should be greater than 0"}


def test_errors_beyond_twenty_are_counted() -> None:
    wide = contract(", ".join(f"x{index}: double" for index in range(50)))
    with pytest.raises(Unprocessable, match=r"50 values .* \(the first 20 are listed\)") as refused:
        wide.read_row(b"{}")
    assert len(refused.value.faults) == 20


@pytest.mark.parametrize("kind", TYPES)
def test_errors_never_contain_values(kind: str) -> None:
    secret = "hunter2"
    with pytest.raises((Unprocessable, Malformed)) as refused:
        contract(f"it: {kind}", {"it": {"maxLength": 3}} if kind == "string" else None).read_row(
            json.dumps({"it": secret}).encode()
        )
    assert secret not in repr(refused.value) + repr(getattr(refused.value, "faults", ""))


def test_errors_truncate_names() -> None:
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_row(json.dumps({"sepal": 1, "x" * 5000: 1}).encode())
    ((name,),) = faults(refused)
    assert len(str(name)) == 101


# -- batches


def test_batch_keeps_the_order_of_rows() -> None:
    rows = [{"sepal": float(index)} for index in range(1, 10)]
    assert IRIS.read_batch(json.dumps({"rows": rows}).encode()) == (rows, {})


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b"{}", ("rows",)),
        (b'{"rows": []}', ("rows",)),
        (b'{"rows": null}', ("rows",)),
        (b'{"rows": {"sepal": 1}}', ("rows",)),
        (b'{"rows": [null]}', ("rows", 0)),
        (b'{"rows": [[1, 2]]}', ("rows", 0)),
        (b'{"rows": [{"sepal": 1}], "more": 1}', ("more",)),
        (b'{"rows": [{"sepal": 1}], "params": {}}', ("params",)),
    ],
)
def test_batch_is_an_object_with_rows(body: bytes, loc: tuple[str | int, ...]) -> None:
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_batch(body)
    assert [*faults(refused)] == [loc]


def test_batch_with_too_many_rows_is_too_large() -> None:
    rows = [b'{"sepal": 1}'] * MAX_ROWS
    assert len(IRIS.read_batch(b'{"rows": [%s]}' % b",".join(rows))[0]) == MAX_ROWS
    with pytest.raises(BodyTooLarge, match=f"more than {MAX_ROWS} rows"):
        IRIS.read_batch(b'{"rows": [%s]}' % b",".join([*rows, rows[0]]))


# -- parameters

QUERIES: list[tuple[dict[str, list[str]], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": ["0.5"]}, {"temperature": 0.5}),
    ({"temperature": ["1"]}, {"temperature": 1.0}),
    ({"top": ["5"]}, {"top": 5}),
    ({"strict": ["true"]}, {"strict": True}),
    ({"mode": ["5"]}, {"mode": "5"}),
    ({"mode": ["true"]}, {"mode": "true"}),
    ({"mode": [""]}, {"mode": ""}),
    ({"stops": ["a", "b"]}, {"stops": ["a", "b"]}),
    ({"stops": ["a"]}, {"stops": ["a"]}),
    ({"limits": ["1", "2"]}, {"limits": [1, 2]}),
]


@pytest.mark.parametrize(("query", "expected"), QUERIES)
def test_parameters_are_read_from_the_query(query: dict[str, list[str]], expected: dict[str, Any]) -> None:
    assert PARAMS.read_query(query) == expected


@pytest.mark.parametrize("expected", [expected for _, expected in QUERIES])
def test_parameters_are_read_from_a_batch(expected: dict[str, Any]) -> None:
    body = json.dumps({"rows": [{"x": 1}], "params": expected})
    assert PARAMS.read_batch(body.encode()) == ([{"x": 1.0}], expected)


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ({"temperature": ["warm"]}, ("temperature",)),
        ({"temperature": ["NaN"]}, ("temperature",)),
        ({"temperature": [""]}, ("temperature",)),
        ({"temperature": ["1", "2"]}, ("temperature",)),
        ({"temperature": ["null"]}, ("temperature",)),
        ({"top": ["1.5"]}, ("top",)),
        ({"top": ["1e-2"]}, ("top",)),
        ({"top": ["true"]}, ("top",)),
        ({"top": [str(2**63)]}, ("top",)),
        ({"top": ["9" * 5000]}, ("top",)),
        ({"top": ["[" * 5000]}, ("top",)),
        ({"strict": ["1"]}, ("strict",)),
        ({"strict": ["yes"]}, ("strict",)),
        ({"mode": ["a", "b"]}, ("mode",)),
        ({"since": ["yesterday"]}, ("since",)),
        ({"limits": ["1", "x"]}, ("limits", 1)),
        ({"unknown": ["1"]}, ("unknown",)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_parameter_is_refused(query: dict[str, list[str]], loc: tuple[str | int, ...]) -> None:
    with pytest.raises(Unprocessable) as refused:
        PARAMS.read_query(query)
    assert [*faults(refused)] == [loc]


def test_model_without_parameters_accepts_no_query() -> None:
    with pytest.raises(Unprocessable) as refused:
        IRIS.read_query({"top": ["1"]})
    assert faults(refused) == {("top",): "Extra inputs are not permitted"}


# -- the documentation


def test_row_schema_has_title_description_and_example() -> None:
    row = IRIS.with_example({"sepal": 5.1}).row
    schema = TypeAdapter[Any](row).json_schema()
    assert schema["title"] == "IrisRow"
    assert schema["required"] == ["sepal"]
    assert schema["additionalProperties"] is False
    assert schema["examples"] == [{"sepal": 5.1}]
    assert schema["properties"]["sepal"] == {
        "title": "Sepal",
        "type": "number",
        "format": "double",
        "exclusiveMinimum": 0,
        "maximum": 10,
        "description": "Sepal length in cm",
        "unit": "cm",
    }


@pytest.mark.parametrize("kind", TYPES)
def test_row_schema_matches_accepted_json(kind: str) -> None:
    """Every JSON value that a type accepts has the JSON type in the schema."""
    row = contract(f"it: {kind}").row
    schema = TypeAdapter[Any](row).json_schema()["properties"]["it"]
    value = {"boolean": True, "integer": 1, "number": 1.5, "string": "2026-01-01"}[schema["type"]]
    value = "AP8=" if kind == "binary" else value
    assert contract(f"it: {kind}").read_row(json.dumps({"it": value}).encode())


def test_contract_equality() -> None:
    assert contract("x: double") == contract("x: double")
    assert contract("x: double").with_example({"x": 1.0}) == contract("x: double")
    for other in (contract("x: float"), contract("x: double?"), contract("x: double", {"x": {"minimum": 0}})):
        assert contract("x: double") != other


@given(st.floats())
def test_number_is_accepted_if_json_can_represent_it(number: float) -> None:
    x = contract("x: double")
    body = json.dumps({"x": number}).encode()
    if math.isfinite(number):
        assert x.read_row(body) == {"x": number}
    else:
        with pytest.raises(Unprocessable):
            x.read_row(body)


def test_contract_works_with_a_pydantic_plugin(tmp_path: Path) -> None:
    (tmp_path / "watching.py").write_text(
        "class Plugin:\n"
        "    def new_schema_validator(self, *args, **kwargs):\n"
        "        return Handler(), Handler(), Handler()\n"
        "class Handler:\n"
        "    def on_enter(self, *args, **kwargs): print('watched')\n"
        "plugin = Plugin()\n"
    )
    info = tmp_path / "watching-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: watching\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pydantic]\nwatching = watching:plugin\n")
    code = (
        "from pydantic import TypeAdapter; TypeAdapter(int).validate_python(1)\n"
        "from tests.support.contracts import contract; made = contract('x: double'); made.compile()\n"
        "print(made.read_row(b'{\"x\": 1}'))"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "watched" in done.stdout  # the plugin is in use
    assert done.stdout.splitlines()[-1] == "{'x': 1.0}"
