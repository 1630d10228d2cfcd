"""Samples of the rows of successful requests, and of their predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from serving.batching.pending_request import Output
from serving.codecs.model_input import Rows
from serving.codecs.predictions import LazyPredictions, Predictions
from serving.errors import ModelFailed

_ROWS_PER_STEP = 200


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """The rows and the predictions of one call; every `step`-th of them is the sample."""

    rows: Rows
    output: Output
    step: int


class SampledInputs:
    """The input rows of samples."""

    def __init__(self, samples: Sequence[SampledRequest]) -> None:
        self._tables = _concat(
            [
                _every(sample.rows, sample.step)
                for sample in samples
                if isinstance(sample.rows, pa.RecordBatch)
            ]
        )
        self._objects = [
            row
            for sample in samples
            if not isinstance(sample.rows, pa.RecordBatch)
            for row in sample.rows[:: sample.step]
        ]

    def __len__(self) -> int:
        return len(self._objects) + sum(map(len, self._tables))

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, with None for rows without it."""
        values = [row.get(name) for row in self._objects]
        for table in self._tables:
            is_absent = name not in table.schema.names
            values += [None] * len(table) if is_absent else table.column(name).to_pylist()
        return values


def sampled_predictions(samples: Sequence[SampledRequest]) -> Iterator[list[dict[str, Any]]]:
    """Yield the predictions of samples in lists of some hundred; one that is invalid in JSON is empty.

    Streams and outputs that are not one result per row have no predictions.
    """
    texts = _texts(samples)
    while some := [*islice(texts, _ROWS_PER_STEP)]:
        yield orjson.loads(b"[" + b",".join(some) + b"]")


def _texts(samples: Sequence[SampledRequest]) -> Iterator[bytes]:
    """Yield the JSON object of each prediction."""
    for sample in samples:
        if isinstance(sample.output, Predictions):
            yield from map(sample.output.row_json, range(0, len(sample.output), sample.step))
    for predictions in _materialized(samples):
        yield from (
            b"{}" if row in predictions.invalid_rows else predictions.row_json(row)
            for row in range(len(predictions))
        )


def _materialized(samples: Sequence[SampledRequest]) -> Iterator[Predictions]:
    """Yield the predictions of lazy outputs."""
    lazy = [(sample.output, sample.step) for sample in samples if isinstance(sample.output, LazyPredictions)]
    for table in _concat([_every(output.table, step) for output, step in lazy]):
        for start in range(0, len(table), _ROWS_PER_STEP):
            with suppress(ModelFailed):  # other protocols can express outputs that JSON cannot
                yield lazy[0][0].make(table.slice(start, _ROWS_PER_STEP))


def _concat(tables: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return one table if the schemas are equal, since one takes much less time than many."""
    try:
        return [pa.concat_batches(tables)] if tables else []
    except pa.ArrowInvalid:
        return tables


def _every(table: pa.RecordBatch, step: int) -> pa.RecordBatch:
    return table if step == 1 else table.take(pa.array(range(0, len(table), step)))
