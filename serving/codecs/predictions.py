"""The predictions for a table, as JSON texts: made for all rows at once, joined for those who asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serving.codecs.json_values import JsonFragments
from serving.errors import ModelFailed


@dataclass(frozen=True, slots=True)
class Predictions:
    """A JSON object for each row, in pieces: `width` of them a row, the last of which ends in a comma."""

    pieces: Sequence[bytes]
    width: int
    invalid_rows: Collection[int] = ()
    """Rows for which the model answered what JSON can't say."""

    def __len__(self) -> int:
        return len(self.pieces) // self.width

    def part(self, start: int, end: int) -> Predictions:
        """Those for some of the rows.

        Raises:
            ModelFailed: JSON can't say one of them.
        """
        if self.invalid_rows and (rows := [row for row in self.invalid_rows if start <= row < end]):
            raise ModelFailed(f"its prediction for row {min(rows) - start} is missing or not finite")
        return Predictions(self.pieces[start * self.width : end * self.width], self.width)

    def is_one_per_row(self, rows: int) -> bool:
        """Return whether there is one for each of so many rows."""
        return len(self) == rows

    def materialize(self) -> Predictions:
        """They are made."""
        return self

    def row(self, index: int) -> bytes:
        """The object of one row, with a comma behind it."""
        return b"".join(self.pieces[index * self.width : (index + 1) * self.width])

    def json(self) -> bytes:
        """The objects of all rows, each with a comma behind it."""
        return b"".join(self.pieces)


@dataclass(frozen=True, slots=True)
class LazyPredictions:
    """The predictions for a table, made when they are needed: at once, a large one would hold up others.

    A `whole` one is a result for all rows of a request, of which no row has a part.
    """

    make: Callable[[pa.RecordBatch], Predictions]
    table: pa.RecordBatch
    whole: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def is_one_per_row(self, rows: int) -> bool:
        """Return whether there is one result for each of so many rows."""
        return not self.whole and len(self.table) == rows

    def part(self, start: int, end: int) -> LazyPredictions:
        """Return those for some of the rows."""
        return self if self.whole else LazyPredictions(self.make, self.table.slice(start, end - start))

    def materialize(self) -> Predictions:
        """Make them.

        Raises:
            ModelFailed: there is none for each row, or JSON can't say it.
        """
        if self.whole:
            raise ModelFailed("it returned one result for all rows")
        return self.make(self.table).part(0, len(self.table))


def interleave(*parts: bytes | JsonFragments) -> Predictions:
    """Predictions of parts that stand one behind the other in each row: the same for all, or one for each."""
    varying = [part for part in parts if isinstance(part, JsonFragments)]
    rows, width = len(varying[0].texts), len(parts)
    pieces = [b""] * (rows * width)
    for index, part in enumerate(parts):
        pieces[index::width] = part.texts if isinstance(part, JsonFragments) else [part] * rows
    return Predictions(pieces, width, {row for part in varying for row in part.bad})
