"""Records as they came from the front → rows of the tables."""

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
    """What is to be inserted, by the columns of the tables, and how many records nothing could be made of."""

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
"""The columns in which they are."""


def outputs(told: str) -> PredictionSchema:
    """How a version's answers are read, of what the journal keeps of the version."""
    facts = orjson.loads(told)
    return _FORMS[facts.pop("form")].validate_python(facts)


def unpack(payload: bytes) -> Rows:
    """The rows of the tables for what `records.pack` made."""
    batch = pa.ipc.open_stream(payload).read_next_batch()
    versions = orjson.loads(batch.schema.metadata[b"versions"])
    models = [model_json(version["model"], version["version"]) for version in versions]
    found, lost = [], 0
    for identity, live, protocol, rows, params, body, answer, *tables, latency, request_id in _each(batch):
        try:
            if tables[0] is not None:
                inputs, answered = _in_words(tables, versions[live])
            else:
                inputs, answered = _READERS[protocol](body, answer, models[live])
            at = _moment(identity[:13])
            told = (versions[live]["id"], protocol, rows, inputs.decode(), params, answered.decode())
            found.append((identity, at, *told, latency, request_id))
        except Exception:  # whatever it is, the others are written
            log.exception("a record could not be read")
            lost += 1
    return Rows([tuple(version[name] for name in VERSION) for version in versions], found, lost)


def _each(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    columns = (
        repeat(None) if column.null_count == len(column) else column.to_pylist() for column in batch.columns
    )
    return zip(*columns)  # noqa: B905  # what repeats has no length


@lru_cache(maxsize=1024)
def _moment(prefix: str) -> datetime:
    """The time with which an id begins; that of many is the same."""
    return datetime.fromtimestamp(int(prefix[:8] + prefix[9:], 16) / 1000, UTC)


def _in_words(tables: list[Any], version: Mapping[str, Any]) -> tuple[bytes, bytes]:
    from serving.journal.json_rows import to_json_rows  # heavy, and mostly not needed

    rows, answers, places = tables
    return to_json_rows(rows, answers, places, outputs(version["outputs"]))


# -- what typed routes take and answer


def _read_predict(body: bytes, answer: bytes, model: bytes) -> tuple[bytes, bytes]:
    return b"[%s]" % body, predictions_of_row_response(answer, model)


def _read_batch(body: bytes, answer: bytes, model: bytes) -> tuple[bytes, bytes]:
    return orjson.dumps(orjson.loads(body)["rows"]), predictions_of_batch_response(answer, model)


def _read_stream(body: bytes, answer: bytes, model: bytes) -> tuple[bytes, bytes]:
    return b"[%s]" % body, b"[[%s]]" % answer


_READERS = {"predict": _read_predict, "batch": _read_batch, "stream": _read_stream}
