"""Parsing of large JSON batches in chunks, as columns.

Parsing megabytes at once would delay all other requests. The reader therefore cuts the body between two rows,
near the desired size, without parsing it first. A cut elsewhere, such as within a string, leaves a chunk that
is not JSON; the reader then parses the rest of the body at once.

Columns are parsed three times as fast as rows. This path accepts only rows that certainly match the contract.
`Contract.read_batch` parses all others: it decides, and it writes the error messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
from pydantic import ValidationError

from serving.codecs.model_input import Rows
from serving.contract.contract import Contract, validator
from serving.errors import BodyTooLarge, FieldError, Malformed, Unprocessable
from serving.types.scalars import Scalar

_CHUNK_BYTES = 64 * 1024
_PARAMS = rb'"params"\s*:\s*\{[^{}]*\}\s*'
_HEAD = re.compile(rb"\s*\{\s*(?:" + _PARAMS + rb',\s*)?"rows"\s*:\s*\[')
_TAIL = re.compile(rb"\]\s*(?:,\s*" + _PARAMS + rb")?\}\s*\Z")
_MAX_TAIL_BYTES = 4096
_BETWEEN_ROWS = re.compile(rb"\}\s*,\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Consecutive rows of a batch, and the parameters of the batch."""

    rows: Rows
    params: Mapping[str, Any]


class BatchReader:
    """Parses batches for one contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._columns = _Columns(contract)

    def read(self, body: bytes) -> Iterator[RowChunk]:
        """Yield the rows of a batch's JSON body in chunks of about 64 KB.

        Raises:
            Malformed: the body is not JSON, or repeats a field.
            BodyTooLarge: there are more rows than the contract allows.
            Unprocessable: the rows do not match the contract.
        """
        head, tail = _HEAD.match(body), _TAIL.search(body, max(0, len(body) - _MAX_TAIL_BYTES))
        if not head or not tail or head.end() > tail.start():
            yield RowChunk(*self._contract.read_batch(body))
            return
        before, after = body[: head.end()], body[tail.start() :]
        params: Mapping[str, Any] | None = None if b'"params"' in before + after else {}
        count = 0
        for start, end in _row_boundaries(body, head.end(), tail.start()):
            rows = None if params is None else self._columns.read(body[start:end])
            if rows is None:
                try:
                    rows, params = self._contract.read_batch(before + body[start:end] + after)
                except Malformed:
                    rows, params = self._contract.read_batch(body)
                    yield RowChunk(rows[count:], params)
                    return
                except Unprocessable as error:
                    raise _offset_rows(error, count) from None
            count += len(rows)
            if count > self._contract.max_rows:
                raise BodyTooLarge(f"The batch has more than {self._contract.max_rows} rows.")
            yield RowChunk(rows, params or {})


class _Columns:
    """Parses rows into columns, for types whose values the JSON parser cannot misread."""

    def __init__(self, contract: Contract) -> None:
        columns = contract.columns
        self._layout = contract.layout
        self._names = frozenset(column.name for column in columns)
        self._readers = {
            column.name: (validator(list[column.annotation]), column.required)  # type: ignore[name-defined]
            for column in columns
        }
        types = {column.name: column.kind for column in columns}
        scalars = {name: type_ for name, type_ in types.items() if isinstance(type_, Scalar)}
        self._texts = [name for name, type_ in scalars.items() if type_.python is str]
        self._is_applicable = scalars == types and all(
            type_.convert is None and ":" not in name for name, type_ in scalars.items()
        )
        self._all_required = all(column.required for column in columns)

    def read(self, chunk: bytes) -> pa.RecordBatch | None:
        """Return the comma-separated rows of a chunk; None if the contract must parse them."""
        if not self._is_applicable or (self._texts and b"\\u00" in chunk):
            return None
        try:
            rows = orjson.loads(b"[%b]" % chunk)
            if not any(rows) or not self._has_fields(rows, chunk):  # a table without columns has no rows
                return None
            return self._layout.batch(
                {
                    name: reader.validate_python([row[name] for row in rows])
                    for name, (reader, required) in self._readers.items()
                    if required or any(name in row for row in rows)  # if some rows lack it: KeyError
                }
            )
        except (ValueError, TypeError, LookupError, AttributeError, ValidationError, pa.ArrowException):
            return None

    def _has_fields(self, rows: list[dict[str, Any]], chunk: bytes) -> bool:
        """Check that the rows have no unknown and no repeated field: there is one name per colon."""
        fields = sum(map(len, rows))
        if self._all_required:
            known = fields == len(rows) * len(self._names)
        else:
            known = all(row.keys() <= self._names for row in rows)
        in_texts = sum((row.get(name) or "").count(":") for name in self._texts for row in rows)
        return known and bool(chunk.count(b":") == fields + in_texts)


def _row_boundaries(body: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each chunk of the rows between `start` and `end`."""
    while cut := _BETWEEN_ROWS.search(body, start + _CHUNK_BYTES, end):
        yield start, cut.start() + 1
        start = cut.end()
    yield start, end


def _offset_rows(error: Unprocessable, rows: int) -> Unprocessable:
    """Return the error with the row numbers increased by `rows`."""
    faults = tuple(
        FieldError((fault.loc[0], fault.loc[1] + rows, *fault.loc[2:]), fault.msg)
        if fault.loc[:1] == ("rows",) and len(fault.loc) > 1 and isinstance(fault.loc[1], int)
        else fault
        for fault in error.faults
    )
    return Unprocessable(str(error), faults)
