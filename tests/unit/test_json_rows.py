"""Reading a batch in pieces and columns gives the same result as `Contract.read_batch`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.types import ParamSpec

from serving.contract.contract import Contract
from serving.errors import BodyTooLarge, Malformed, RequestError, Unprocessable
from serving.protocols import json_rows
from serving.protocols.json_rows import BatchReader
from tests.support.contracts import MAX_ROWS, contract

IRIS = contract("x: double, y: double", {"x": {"minimum": 0, "maximum": 10}})
MIXED = contract("flag: boolean, small: integer, big: long, half: float, x: double, text: string")
HOLEY = contract("x: double, n: long?, note: string?")
PARAMS = contract("x: double", params=[ParamSpec("k", "double", 1.0)])
CONTRACTS = {"numbers": IRIS, "mixed": MIXED, "holey": HOLEY, "dates": contract("x: double, at: datetime")}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read pieces of a few rows."""
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", 64)


def sent(rows: list[Any], **more: Any) -> bytes:
    return json.dumps({"rows": rows, **more}).encode()


def table(model_contract: Contract, rows: Any) -> pa.RecordBatch:
    """Return the rows as a record batch with the columns of the contract."""
    kinds: dict[str, Any] = {column.name: column.kind for column in model_contract.columns}
    return pa.RecordBatch.from_pylist(
        rows, pa.schema([pa.field(name, kind.arrow) for name, kind in kinds.items()])
    )


def whole(model_contract: Contract, body: bytes) -> tuple[Any, Any]:
    """Return the rows and parameters of all pieces, or the error and its faults."""
    try:
        pieces = [*BatchReader(model_contract).read(body)]
    except RequestError as error:
        return type(error), error.faults
    rows = [
        row
        for piece in pieces
        for row in (piece.rows.to_pylist() if isinstance(piece.rows, pa.RecordBatch) else piece.rows)
    ]
    return table(model_contract, rows), pieces[-1].params


def at_once(model_contract: Contract, body: bytes) -> tuple[Any, Any]:
    """Return the same for `read_batch`."""
    try:
        rows, params = model_contract.read_batch(body)
    except RequestError as error:
        return type(error), error.faults
    return table(model_contract, rows), params


def test_large_batch_is_read_in_columnar_pieces() -> None:
    rows = [{"x": index % 10, "y": index / 7} for index in range(100)]
    pieces = [*BatchReader(IRIS).read(sent(rows))]
    assert len(pieces) > 10
    assert all(isinstance(piece.rows, pa.RecordBatch) for piece in pieces)
    assert [row for piece in pieces for row in cast("Any", piece.rows).to_pylist()] == rows


def test_error_location_counts_from_the_first_row() -> None:
    rows = [{"x": 1, "y": 1} for _ in range(100)]
    rows[70] = {"x": 11, "y": 1}
    with pytest.raises(Unprocessable) as caught:
        list(BatchReader(IRIS).read(sent(rows)))
    assert [fault.loc for fault in caught.value.faults] == [("rows", 70, "x")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"rows": []}',
        b'{"rows": [}',
        b'{"rows": ]}',
        b'{"rows": [1]}',
        b'{"rows": [[]]}',
        b'{"rows": [{"x": 1, "y": 1},]}',
        b'{"rows": [{"x": 1, "y": 1}] extra}',
        b'{"rows": [{"x": 1, "y": 1}]} extra',
        b'{"rows": [{"x": 1, "y": 1}], "more": 1}',
        b'{"rows": [{"x": 1, "y": 1}], "params": {"k": 1}}',
        b'{"params": {}, "rows": [{"x": 1, "y": 1}]}',
        b'{"rows": [{"x": 1, "y": 1}], "rows": [{"x": 1, "y": 1}]}',
        b'{"rows": [{"x": 1, "y": 1, "x": 1}]}',
        b'{"rows": [{"x": 1, "y": 1}, {"x": 1, "x": 1}]}',
        b'{"rows": [{"x": 1, "y": {"a": [{"b": 1},{"c": 2}]}}]}',
        b'{"rows": [{"x": NaN, "y": 1}]}',
        b'{"rows": [{"x": 1, "y": 1e999}]}',
        b'{"rows": [{"x": 1, "y": 1%b}]}' % (b"0" * 400),
        b'{"rows": [{"x": 1, "y": 1%b}]}' % (b"0" * 30),
        b'{"rows": [{"x": true, "y": 1}]}',
        b'{"rows": [{"x": "1", "y": 1}]}',
        b'{"rows": [{"x": null, "y": 1}]}',
        b'{"rows": [{"x": -1, "y": 1}]}',
        b'{"rows": [{"x": 1}]}',
        b'{"rows": [{"x": 1, "y": 1, "z": 1}]}',
        b'{"rows": [{"\\u0078": 1, "y": 1}]}',
        b'\xef\xbb\xbf{"rows": [{"x": 1, "y": 1}]}',
        b'{"rows": [{"x": 1, "\xff": 1}]}',
    ],
)
@pytest.mark.parametrize("rows", [0, 20])
def test_invalid_batches_give_the_same_error(body: bytes, rows: int) -> None:
    fine = b'{"x": 1, "y": 2}, ' * rows
    body = body.replace(b'"rows": [', b'"rows": [' + fine)
    assert whole(IRIS, body) == at_once(IRIS, body)


texts = st.text(max_size=8) | st.sampled_from(["},{", ":", '"},{"', "\\", "}, {", "{}", "a\n}, {"])
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    texts,
    st.just([{}, {}]),
    st.just({"x": 1}),
)
right = {
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "double": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60),
    "string": texts,
    "datetime": st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)).map(datetime.isoformat),
}


def rows_of(model_contract: Contract) -> st.SearchStrategy[list[dict[str, Any]]]:
    needed = {column.name: right[column.type] for column in model_contract.columns if column.required}
    others = {
        column.name: st.none() | right[column.type]
        for column in model_contract.columns
        if not column.required
    }
    return st.lists(st.fixed_dictionaries(needed, optional=others), min_size=1, max_size=12)


@given(
    data=st.data(),
    name=st.sampled_from([*CONTRACTS]),
    separators=st.sampled_from([(",", ":"), (" , ", " : ")]),
)
@settings(deadline=None)
def test_valid_batches_give_the_same_rows(
    data: st.DataObject, name: str, separators: tuple[str, str]
) -> None:
    model_contract = CONTRACTS[name]
    rows = data.draw(rows_of(model_contract))
    escaped = data.draw(st.booleans())
    body = json.dumps({"rows": rows}, separators=separators, ensure_ascii=escaped).encode(
        "utf-8", "surrogatepass"
    )
    assert whole(model_contract, body) == at_once(model_contract, body)


@given(data=st.data(), name=st.sampled_from([*CONTRACTS]))
@settings(deadline=None)
def test_possibly_invalid_batches_give_the_same_result(data: st.DataObject, name: str) -> None:
    model_contract = CONTRACTS[name]
    rows: list[dict[str, Any]] = data.draw(rows_of(model_contract))
    spoilt = data.draw(st.sampled_from(rows))
    spoilt[data.draw(st.sampled_from([*spoilt, "more"]))] = data.draw(values)
    body = json.dumps({"rows": rows}).encode()
    assert whole(model_contract, body) == at_once(model_contract, body)


def test_escaped_colon_does_not_hide_a_duplicate_field() -> None:
    model_contract = contract("text: string")
    body = rb'{"rows": [{"text": "\u003a", "text": "a"}]}'
    assert whole(model_contract, body) == (Malformed, ())


def test_all_pieces_have_the_batch_parameters() -> None:
    for body in (
        sent([{"x": 1}] * 50, params={"k": 2.5}),
        b'{"params":{"k":2.5},"rows":[%b{"x":1}]}' % (b'{"x":1},' * 50),
    ):
        pieces = [*BatchReader(PARAMS).read(body)]
        assert len(pieces) > 1
        assert all(piece.params == {"k": 2.5} for piece in pieces)


def test_reading_stops_at_the_row_limit() -> None:
    pieces = BatchReader(contract("x: double")).read(sent([{"x": 1}] * 110) + b" " * 100)
    assert len(next(pieces).rows) < MAX_ROWS
    with pytest.raises(BodyTooLarge, match=f"more than {MAX_ROWS} rows"):
        list(pieces)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([{"x": 1.0, "n": 1}, {"x": 2.0, "n": 2}], ["x", "n"]),
        ([{"x": 1.0}, {"x": 2.0}], ["x"]),
    ],
)
def test_column_missing_in_all_rows_is_absent(rows: list[dict[str, Any]], names: list[str]) -> None:
    (piece,) = BatchReader(HOLEY).read(sent(rows))
    assert isinstance(piece.rows, pa.RecordBatch)
    assert piece.rows.schema.names == names


def test_column_missing_in_some_rows_prevents_columnar_reading() -> None:
    rows = [{"x": 1.0, "n": 1}, {"x": 2.0}]
    (piece,) = BatchReader(HOLEY).read(sent(rows))
    assert piece.rows == rows


def test_rows_without_values_keep_their_number() -> None:
    optional = contract("x: double?, n: long?")
    pieces = [*BatchReader(optional).read(sent([{}] * 50))]
    assert sum(len(piece.rows) for piece in pieces) == 50
