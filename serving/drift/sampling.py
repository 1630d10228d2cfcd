"""Some rows of requests that were answered, and the predictions for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from serving.batching.pending import Output
from serving.codecs.model_input import Rows
from serving.codecs.predictions import LazyPredictions, Predictions
from serving.errors import ModelFailed

_ROWS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """Every so many of the rows that were asked together, and of the predictions."""

    rows: Rows
    answer: Output
    step: int


class SampledInputs:
    """The rows of samples."""

    def __init__(self, samples: Sequence[SampledRequest]) -> None:
        self._tables = _joined(
            [_every(each.rows, each.step) for each in samples if isinstance(each.rows, pa.RecordBatch)]
        )
        self._objects = [
            row
            for each in samples
            if not isinstance(each.rows, pa.RecordBatch)
            for row in each.rows[:: each.step]
        ]

    def __len__(self) -> int:
        return len(self._objects) + sum(map(len, self._tables))

    def column(self, name: str) -> list[Any]:
        """The values of one column, None where there is none."""
        values = [row.get(name) for row in self._objects]
        for table in self._tables:
            is_absent = name not in table.schema.names
            values += [None] * len(table) if is_absent else table.column(name).to_pylist()
        return values


def sampled_predictions(samples: Sequence[SampledRequest]) -> Iterator[list[dict[str, Any]]]:
    """The predictions of samples, some hundred at a time; an empty one where JSON could not say it.

    There are none where a model answered bit by bit, or one thing for all rows.
    """
    texts = _texts(samples)
    while some := [*islice(texts, _ROWS_AT_ONCE)]:
        yield orjson.loads(b"[" + b",".join(some) + b"]")


def _texts(samples: Sequence[SampledRequest]) -> Iterator[bytes]:
    """Yield the JSON object of each prediction."""
    for each in samples:
        if isinstance(each.answer, Predictions):
            yield from map(each.answer.row_json, range(0, len(each.answer), each.step))
    for predictions in _made(samples):
        yield from (
            b"{}" if row in predictions.invalid_rows else predictions.row_json(row)
            for row in range(len(predictions))
        )


def _made(samples: Sequence[SampledRequest]) -> Iterator[Predictions]:
    """The predictions that had not been made."""
    later = [(each.answer, each.step) for each in samples if isinstance(each.answer, LazyPredictions)]
    for table in _joined([_every(answer.table, step) for answer, step in later]):
        for start in range(0, len(table), _ROWS_AT_ONCE):
            with suppress(ModelFailed):  # other protocols tell what JSON's predictions can't
                yield later[0][0].make(table.slice(start, _ROWS_AT_ONCE))


def _joined(tables: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One table where they are alike, which takes far less time than many."""
    try:
        return [pa.concat_batches(tables)] if tables else []
    except pa.ArrowInvalid:
        return tables


def _every(table: pa.RecordBatch, step: int) -> pa.RecordBatch:
    return table if step == 1 else table.take(pa.array(range(0, len(table), step)))
