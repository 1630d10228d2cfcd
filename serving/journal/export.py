"""Export the journal as Parquet: one line per predicted row, with the true outcome if it is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import parquet
from sqlalchemy import ColumnElement, Connection, Engine, func, select

from serving.journal.database import transaction
from serving.journal.schema import feedback, first_id, predictions, versions

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int32()),
        ("at", pa.timestamp("ms", "UTC")),
        ("model", pa.string()),
        ("version", pa.string()),
        ("model_id", pa.string()),
        ("run_id", pa.string()),
        ("protocol", pa.string()),
        ("input", pa.string()),
        ("params", pa.string()),
        ("output", pa.string()),
        ("latency", pa.float64()),
        ("request_id", pa.string()),
        ("outcome", pa.string()),
        ("correct", pa.bool_()),
        ("error", pa.float64()),
    ]
)
"""`input`, `params`, `output` and `outcome` are JSON; `latency` is in seconds."""
_IDS_PER_QUERY = 500
_MAX_BYTES = 8 * 2**20
_ROWS_PER_GROUP = 10_000

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExportFilter:
    """Selects predictions; without any field, all of them. `until` is exclusive."""

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    version: str | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions; ids are in the order of time and indexed, so they stand for times."""
        conditions: list[ColumnElement[bool]] = []
        if self.since:
            conditions.append(predictions.c.id >= first_id(self.since))
        if self.until:
            conditions.append(predictions.c.id < first_id(self.until))
        if self.model:
            conditions.append(versions.c.model == self.model)
        if self.version:
            conditions.append(versions.c.version == self.version)
        return conditions


def export(engine: Engine, file: Path, choice: ExportFilter) -> int:
    """Write the selected predictions to a file, some thousand rows at a time; return the number of rows.

    Raises:
        JournalUnavailable: The database is unavailable.
        OSError: The file cannot be written.
    """
    written = 0
    with parquet.ParquetWriter(file, SCHEMA) as writer:
        group: list[Line] = []
        size = 0
        for line in _iter_rows(engine, choice):
            group.append(line)
            size += len(line["input"] or "") + len(line["output"] or "")
            if len(group) == _ROWS_PER_GROUP or size > _MAX_BYTES:
                writer.write_batch(pa.RecordBatch.from_pylist(group, SCHEMA))
                written, group, size = written + len(group), [], 0
        writer.write_batch(pa.RecordBatch.from_pylist(group, SCHEMA))
    return written + len(group)


def _iter_rows(engine: Engine, choice: ExportFilter) -> Iterator[Line]:
    after: str | None = None
    while True:
        with transaction(engine) as connection:
            sizes = _sizes(connection, choice, after)
        if not sizes:
            return
        for ids in chunks(sizes):
            with transaction(engine) as connection:
                rows = _rows(connection, ids)
                outcomes = _outcomes(connection, ids)
            for row in rows:
                yield from _rows_of(row, outcomes)
        after = sizes[-1][0]


def _sizes(connection: Connection, choice: ExportFilter, after: str | None) -> list[tuple[str, int]]:
    """Return the next ids, with the size of the data of each."""
    size = func.length(predictions.c.inputs) + func.length(predictions.c.outputs)
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    query = select(predictions.c.id, size).select_from(joined).where(*choice.conditions)
    if after:
        query = query.where(predictions.c.id > after)
    rows = connection.execute(query.order_by(predictions.c.id).limit(_IDS_PER_QUERY))
    return [(identity, length) for identity, length in rows]


def chunks(sizes: list[tuple[str, int]]) -> Iterator[list[str]]:
    """Yield lists of ids whose data fits into memory."""
    chunk: list[str] = []
    total = 0
    for identity, size in sizes:
        if chunk and total + size > _MAX_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(identity)
        total += size
    yield chunk


def _rows(connection: Connection, ids: list[str]) -> list[Any]:
    of_version = (
        versions.c.model,
        versions.c.version.label("number"),
        versions.c.model_id,
        versions.c.run_id,
    )
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    query = select(predictions, *of_version).select_from(joined).where(predictions.c.id.in_(ids))
    return [*connection.execute(query.order_by(predictions.c.id))]


def _outcomes(connection: Connection, ids: list[str]) -> dict[tuple[str, int], Any]:
    query = select(feedback).where(feedback.c.prediction.in_(ids))
    return {(row.prediction, row.row): row for row in connection.execute(query)}


def _rows_of(row: Any, outcomes: dict[tuple[str, int], Any]) -> Iterator[Line]:
    """Yield a line for each row; an output for all rows together is in the first line."""
    inputs, outputs = _split(row.inputs, row.rows), _split(row.outputs, row.rows)
    at = row.at if row.at.tzinfo else row.at.replace(tzinfo=UTC)
    for index in range(row.rows):
        known = outcomes.get((row.id, index))
        yield {
            "id": row.id,
            "row": index,
            "at": at,
            "model": row.model,
            "version": row.number,
            "model_id": row.model_id,
            "run_id": row.run_id,
            "protocol": row.protocol,
            "input": inputs[index],
            "params": row.params,
            "output": outputs[index],
            "latency": row.latency,
            "request_id": row.request_id,
            "outcome": known and known.outcome,
            "correct": known and known.correct,
            "error": known and known.error,
        }


def _split(array: str, rows: int) -> list[str | None]:
    """Return the JSON of each element of a JSON array, with None for missing elements."""
    if rows == 1:
        return [array[1:-1]]
    elements: list[str | None] = [orjson.dumps(element).decode() for element in orjson.loads(array)]
    return elements + [None] * (rows - len(elements))
