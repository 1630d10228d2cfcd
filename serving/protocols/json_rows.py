"""Reads the rows of a large batch in pieces, as columns.

A body of megabytes that is read at once holds up every other request for as long as that takes. It is cut
between two rows instead, near the wanted size, without being parsed: a cut that falls elsewhere, into a text
say, leaves a piece that is no JSON, and then the rest of the body is read at once.

Columns are read three times as fast as rows. What is read so fits the contract for certain; whatever doesn't,
or may not, is left to `Contract.read_batch`, which has the last word and the words for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
from pydantic import ValidationError

from serving.codecs.model_input import Rows
from serving.contract.contract import Contract, validator
from serving.errors import BodyTooLarge, FieldError, Malformed, Unprocessable
from serving.types.scalars import Scalar

_BYTES = 64 * 1024
_PARAMS = rb'"params"\s*:\s*\{[^{}]*\}\s*'
_HEAD = re.compile(rb"\s*\{\s*(?:" + _PARAMS + rb',\s*)?"rows"\s*:\s*\[')
_TAIL = re.compile(rb"\]\s*(?:,\s*" + _PARAMS + rb")?\}\s*\Z")
_MAX_TAIL_BYTES = 4096
_BETWEEN_ROWS = re.compile(rb"\}\s*,\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Some rows of a batch, and the batch's parameters."""

    rows: Rows
    params: Mapping[str, Any]


class BatchReader:
    """Reads batches for one contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._columns = _Columns(contract)

    def read(self, body: bytes) -> Iterator[RowChunk]:
        """The rows of a batch's JSON body, in pieces of some hundred kilobytes.

        Raises:
            Malformed: the body is not JSON, or names a field twice.
            BodyTooLarge: there are more rows than the contract takes.
            Unprocessable: it does not fit the contract.
        """
        head, tail = _HEAD.match(body), _TAIL.search(body, max(0, len(body) - _MAX_TAIL_BYTES))
        if not head or not tail or head.end() > tail.start():
            yield RowChunk(*self._contract.read_batch(body))
            return
        around = partial(b"%b%b%b".__mod__)
        before, after = body[: head.end()], body[tail.start() :]
        params: Mapping[str, Any] | None = None if b'"params"' in before + after else {}
        count = 0
        for start, end in _row_boundaries(body, head.end(), tail.start()):
            rows = None if params is None else self._columns.read(body[start:end])
            if rows is None:
                try:
                    rows, params = self._contract.read_batch(around((before, body[start:end], after)))
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
    """Reads rows into columns, where all values are such as Python's JSON reader can't misread."""

    def __init__(self, contract: Contract) -> None:
        columns = contract.columns
        self._layout = contract.layout
        self._names = frozenset(column.name for column in columns)
        self._readers = {
            column.name: (validator(list[column.annotation]), column.required)  # type: ignore[name-defined]
            for column in columns
        }
        kinds = {column.name: column.kind for column in columns}
        scalars = {name: kind for name, kind in kinds.items() if isinstance(kind, Scalar)}
        self._texts = [name for name, kind in scalars.items() if kind.python is str]
        self._able = scalars == kinds and all(
            kind.convert is None and ":" not in name for name, kind in scalars.items()
        )
        self._all_required = all(column.required for column in columns)

    def read(self, piece: bytes) -> pa.RecordBatch | None:
        """The rows that stand in `piece`, one behind the other; None if the contract should look at them."""
        if not self._able or (self._texts and b"\\u00" in piece):
            return None
        try:
            rows = orjson.loads(b"[%b]" % piece)
            if not rows or not self._has_fields(rows, piece):
                return None
            return self._layout.batch(
                {
                    name: reader.validate_python([row[name] for row in rows])
                    for name, (reader, required) in self._readers.items()
                    if required or any(name in row for row in rows)  # in some alone, it is for the contract
                }
            )
        except (ValueError, TypeError, LookupError, AttributeError, ValidationError, pa.ArrowException):
            return None

    def _has_fields(self, rows: list[dict[str, Any]], piece: bytes) -> bool:
        """Whether the rows have no field but the columns, and none twice: a name for every colon."""
        fields = sum(map(len, rows))
        if self._all_required:
            known = fields == len(rows) * len(self._names)
        else:
            known = all(row.keys() <= self._names for row in rows)
        in_texts = sum((row.get(name) or "").count(":") for name in self._texts for row in rows)
        return known and bool(piece.count(b":") == fields + in_texts)


def _row_boundaries(body: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where pieces of the rows between `start` and `end` begin and end."""
    while cut := _BETWEEN_ROWS.search(body, start + _BYTES, end):
        yield start, cut.start() + 1
        start = cut.end()
    yield start, end


def _offset_rows(error: Unprocessable, rows: int) -> Unprocessable:
    """The same error, of rows that stand behind others."""
    faults = tuple(
        FieldError((fault.loc[0], fault.loc[1] + rows, *fault.loc[2:]), fault.msg)
        if fault.loc[:1] == ("rows",) and len(fault.loc) > 1 and isinstance(fault.loc[1], int)
        else fault
        for fault in error.faults
    )
    return Unprocessable(str(error), faults)
