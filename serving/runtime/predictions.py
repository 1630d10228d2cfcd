"""The predictions for a table, as JSON texts: made for all rows at once, joined for those who asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serving.errors import ModelFailed
from serving.runtime.values import Texts


@dataclass(frozen=True, slots=True)
class Predictions:
    """A JSON object for each row, in pieces: `width` of them a row, the last of which ends in a comma."""

    pieces: Sequence[bytes]
    width: int
    bad: Collection[int] = ()
    """Rows for which the model answered what JSON can't say."""

    def __len__(self) -> int:
        return len(self.pieces) // self.width

    def part(self, start: int, end: int) -> Predictions:
        """Those for some of the rows.

        Raises:
            ModelFailed: JSON can't say one of them.
        """
        if self.bad and (rows := [row for row in self.bad if start <= row < end]):
            raise ModelFailed(f"its prediction for row {min(rows) - start} is missing or not finite")
        return Predictions(self.pieces[start * self.width : end * self.width], self.width)

    def now(self) -> Predictions:
        """They are made."""
        return self

    def row(self, index: int) -> bytes:
        """The object of one row, with a comma behind it."""
        return b"".join(self.pieces[index * self.width : (index + 1) * self.width])

    def json(self) -> bytes:
        """The objects of all rows, each with a comma behind it."""
        return b"".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Later:
    """The predictions for a large table, made when they are asked for: all at once would hold up others."""

    make: Callable[[pa.RecordBatch], Predictions]
    table: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.table)

    def part(self, start: int, end: int) -> Later:
        """Those for some of the rows."""
        return Later(self.make, self.table.slice(start, end - start))

    def now(self) -> Predictions:
        """Make them.

        Raises:
            ModelFailed: the table is not what the output signature says, or JSON can't say it.
        """
        return self.make(self.table).part(0, len(self.table))


@dataclass(frozen=True, slots=True)
class Whole:
    """One thing that a model answered for all rows of a request: no row has a prediction of its own."""

    table: pa.RecordBatch
    rows: int

    def __len__(self) -> int:
        return self.rows

    def part(self, start: int, end: int) -> Whole:
        """It can't be parted."""
        return self

    def now(self) -> Predictions:
        """There are none.

        Raises:
            ModelFailed: always.
        """
        raise ModelFailed(f"it answered one thing for {self.rows} rows")


def woven(*parts: bytes | Texts) -> Predictions:
    """Predictions of parts that stand one behind the other in each row: the same for all, or one for each."""
    varying = [part for part in parts if isinstance(part, Texts)]
    rows, width = len(varying[0].texts), len(parts)
    pieces = [b""] * (rows * width)
    for index, part in enumerate(parts):
        pieces[index::width] = part.texts if isinstance(part, Texts) else [part] * rows
    return Predictions(pieces, width, {row for part in varying for row in part.bad})
