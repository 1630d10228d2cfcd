"""The predictions for a table, as JSON texts: rendered for all rows at once, split among the requests.

Only this module depends on where the commas and braces between predictions are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa

from serving.codecs.output_json import JsonFragments
from serving.errors import ModelFailed


@dataclass(frozen=True, slots=True)
class Predictions:
    """A JSON object per row, in pieces: `width` pieces per row. The last piece of a row ends with a comma."""

    pieces: Sequence[bytes]
    width: int
    invalid_rows: Collection[int] = ()
    """Rows whose prediction is missing or not finite, so that JSON cannot represent it."""

    def __len__(self) -> int:
        return len(self.pieces) // self.width

    def part(self, start: int, end: int) -> Predictions:
        """Return the predictions for some of the rows.

        Raises:
            ModelFailed: JSON cannot represent one of them.
        """
        if self.invalid_rows and (rows := [row for row in self.invalid_rows if start <= row < end]):
            raise ModelFailed(f"its prediction for row {min(rows) - start} is missing or not finite")
        return Predictions(self.pieces[start * self.width : end * self.width], self.width)

    def is_one_per_row(self, rows: int) -> bool:
        """Return whether there is one prediction for each of `rows` rows."""
        return len(self) == rows

    def materialize(self) -> Predictions:
        """Return the predictions, which are rendered already."""
        return self

    def row_json(self, index: int) -> bytes:
        """Return the JSON object of one row."""
        return b"".join(self.pieces[index * self.width : (index + 1) * self.width])[:-1]

    def rows_json(self) -> list[bytes]:
        """Return the JSON object of each row."""
        return [self.row_json(index) for index in range(len(self))]

    def items_json(self) -> bytes:
        """Return the items of the JSON array of all rows, without its brackets."""
        return b"".join(self.pieces)[:-1]


@dataclass(frozen=True, slots=True)
class LazyPredictions:
    """The predictions for a table, rendered on demand: a large table would block the event loop.

    With `whole`, the output is one result for all rows of a request and cannot be split by row.
    """

    make: Callable[[pa.RecordBatch], Predictions]
    table: pa.RecordBatch
    whole: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def is_one_per_row(self, rows: int) -> bool:
        """Return whether there is one result for each of `rows` rows."""
        return not self.whole and len(self.table) == rows

    def part(self, start: int, end: int) -> LazyPredictions:
        """Return the predictions for some of the rows."""
        return self if self.whole else LazyPredictions(self.make, self.table.slice(start, end - start))

    def materialize(self) -> Predictions:
        """Render the predictions.

        Raises:
            ModelFailed: there is no prediction per row, or JSON cannot represent one.
        """
        if self.whole:
            raise ModelFailed("it returned one result for all rows")
        return self.make(self.table).part(0, len(self.table))


def interleave(*parts: bytes | JsonFragments) -> Predictions:
    """Return predictions whose rows consist of these parts: constant bytes, or one fragment per row.

    The last part ends with a comma.
    """
    varying = [part for part in parts if isinstance(part, JsonFragments)]
    rows, width = len(varying[0].texts), len(parts)
    pieces = [b""] * (rows * width)
    for index, part in enumerate(parts):
        pieces[index::width] = part.texts if isinstance(part, JsonFragments) else [part] * rows
    return Predictions(pieces, width, {row for part in varying for row in part.invalid_rows})


# -- responses of the typed endpoints


def model_json(name: str, version: str | None) -> bytes:
    """Return the value of the `model` member of a response."""
    return orjson.dumps({"name": name, "version": version})


def row_response(row: bytes, model: bytes) -> bytes:
    """Return the response to one row: its JSON object with the `model` member added."""
    return row[:-1] + _model_member(model)


def batch_response(chunks: Sequence[bytes], model: bytes) -> list[bytes]:
    """Return the response to a batch, in chunks. `chunks` hold the items of the array, as `items_json`."""
    body = [b'{"predictions":[' + chunks[0], *(b"," + chunk for chunk in chunks[1:])]
    body[-1] += b"]" + _model_member(model)
    return body


def predictions_of_row_response(response: bytes, model: bytes) -> bytes:
    """Return the JSON array of the one prediction in what `row_response` has rendered."""
    return b"[%s}]" % response[: -len(_model_member(model))]


def predictions_of_batch_response(response: bytes, model: bytes) -> bytes:
    """Return the JSON array of predictions in what `batch_response` has rendered."""
    return response[len(b'{"predictions":') : -len(_model_member(model))]


def _model_member(model: bytes) -> bytes:
    return b',"model":%s}' % model
