"""Convert the records from the front to rows of the tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from typing import Any

import orjson
import pyarrow as pa
from pydantic import TypeAdapter

from serving.codecs.prediction_schema import (
    ClassLabels,
    GenericOutput,
    PredictionSchema,
    Probabilities,
    Regression,
    WholeOutput,
)
from serving.codecs.predictions import (
    model_json,
    predictions_of_batch_response,
    predictions_of_row_response,
)

log = logging.getLogger("serving.journal")
_FORMS: Mapping[str, TypeAdapter[PredictionSchema]] = {
    form.__name__: TypeAdapter(form)
    for form in (GenericOutput, WholeOutput, Regression, Probabilities, ClassLabels)
}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows to insert, by the columns of the tables, and the number of unreadable records."""

    versions: list[tuple[Any, ...]]
    predictions: list[tuple[Any, ...]]
    rejected: int


VERSION = ("id", "model", "version", "model_id", "run_id", "source", "task", "outputs")
PREDICTION = (
    "id",
    "at",
    "version",
    "protocol",
    "rows",
    "inputs",
    "params",
    "outputs",
    "latency",
    "request_id",
)
"""The columns of the rows."""


def outputs(stored: str) -> PredictionSchema:
    """Return the schema of a version's predictions from the column `outputs` of `versions`."""
    fields = orjson.loads(stored)
    return _FORMS[fields.pop("form")].validate_python(fields)


def unpack(payload: bytes) -> Rows:
    """Return the rows of the tables for the output of `records.pack`."""
    batch = pa.ipc.open_stream(payload).read_next_batch()
    versions = orjson.loads(batch.schema.metadata[b"versions"])
    models = [model_json(version["model"], version["version"]) for version in versions]
    predictions, rejected = [], 0
    for key, live, protocol, rows, params, body, response, *tables, latency, request_id in _records(batch):
        try:
            if tables[1] is not None:
                inputs, results = _tables_as_json(tables, versions[live])
            elif tables[0] is not None:
                inputs = _inputs_as_json(tables)
                results = predictions_of_batch_response(response, models[live])
            else:
                inputs, results = _READERS[protocol](body, response, models[live])
            at = _moment(key[:13])
            values = (versions[live]["id"], protocol, rows, inputs.decode(), params, results.decode())
            predictions.append((key, at, *values, latency, request_id))
        except Exception:  # a defect must not lose the other records
            log.exception("a record could not be read")
            rejected += 1
    return Rows([tuple(version[name] for name in VERSION) for version in versions], predictions, rejected)


def _records(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    columns = (
        repeat(None) if column.null_count == len(column) else column.to_pylist() for column in batch.columns
    )
    return zip(*columns)  # noqa: B905  # an infinite iterator has no length


@lru_cache(maxsize=1024)
def _moment(prefix: str) -> datetime:
    """Return the time with which an id begins; many ids begin with the same."""
    return datetime.fromtimestamp(int(prefix[:8] + prefix[9:], 16) / 1000, UTC)


def _tables_as_json(tables: list[Any], version: Mapping[str, Any]) -> tuple[bytes, bytes]:
    from serving.journal.typed_rows import to_json_rows  # a heavy import that few records need

    inputs, results, positions = tables
    return to_json_rows(inputs, results, positions, outputs(version["outputs"]))


def _inputs_as_json(tables: list[Any]) -> bytes:
    from serving.journal.typed_rows import input_rows  # as above

    inputs, _, positions = tables
    return input_rows(inputs, positions)


# -- bodies and responses of the typed routes


def _read_predict(body: bytes, response: bytes, model: bytes) -> tuple[bytes, bytes]:
    return b"[%s]" % body, predictions_of_row_response(response, model)


def _read_batch(body: bytes, response: bytes, model: bytes) -> tuple[bytes, bytes]:
    return orjson.dumps(orjson.loads(body)["rows"]), predictions_of_batch_response(response, model)


def _read_stream(body: bytes, response: bytes, model: bytes) -> tuple[bytes, bytes]:
    return b"[%s]" % body, b"[[%s]]" % response


_READERS = {"predict": _read_predict, "batch": _read_batch, "stream": _read_stream}
