"""The journal as Parquet: a line for each row of each prediction, with the true outcome if it is known."""

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
_IDS_AT_ONCE = 500
_BYTES_AT_ONCE = 8 * 2**20
_ROWS_OF_GROUP = 10_000

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExportFilter:
    """Which predictions: none of the bounds for all. `until` is not among them."""

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    version: str | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """As SQL has it: times by the ids, which are in their order, and looked up."""
        found: list[ColumnElement[bool]] = []
        if self.since:
            found.append(predictions.c.id >= first_id(self.since))
        if self.until:
            found.append(predictions.c.id < first_id(self.until))
        if self.model:
            found.append(versions.c.model == self.model)
        if self.version:
            found.append(versions.c.version == self.version)
        return found


def export(engine: Engine, file: Path, choice: ExportFilter) -> int:
    """Write the chosen predictions to a file, some thousand rows at a time; gives how many rows there are.

    Raises:
        JournalAway: the database can't be asked now.
        OSError: the file can't be written.
    """
    written = 0
    with parquet.ParquetWriter(file, SCHEMA) as writer:
        group: list[Line] = []
        size = 0
        for line in _iter_rows(engine, choice):
            group.append(line)
            size += len(line["input"] or "") + len(line["output"] or "")
            if len(group) == _ROWS_OF_GROUP or size > _BYTES_AT_ONCE:
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
        for ids in _chunks(sizes):
            with transaction(engine) as connection:
                rows = _rows(connection, ids)
                outcomes = _outcomes(connection, ids)
            for row in rows:
                yield from _rows_of(row, outcomes)
        after = sizes[-1][0]


def _sizes(connection: Connection, choice: ExportFilter, after: str | None) -> list[tuple[str, int]]:
    """The next ids, and how much is stored with each."""
    size = func.length(predictions.c.inputs) + func.length(predictions.c.outputs)
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    asked = select(predictions.c.id, size).select_from(joined).where(*choice.conditions)
    if after:
        asked = asked.where(predictions.c.id > after)
    found = connection.execute(asked.order_by(predictions.c.id).limit(_IDS_AT_ONCE))
    return [(identity, length) for identity, length in found]


def _chunks(sizes: list[tuple[str, int]]) -> Iterator[list[str]]:
    """Ids of which so many are fetched at once as fit into memory."""
    portion: list[str] = []
    total = 0
    for identity, size in sizes:
        if portion and total + size > _BYTES_AT_ONCE:
            yield portion
            portion, total = [], 0
        portion.append(identity)
        total += size
    yield portion


def _rows(connection: Connection, ids: list[str]) -> list[Any]:
    facts = (versions.c.model, versions.c.version.label("number"), versions.c.model_id, versions.c.run_id)
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    asked = select(predictions, *facts).select_from(joined).where(predictions.c.id.in_(ids))
    return [*connection.execute(asked.order_by(predictions.c.id))]


def _outcomes(connection: Connection, ids: list[str]) -> dict[tuple[str, int], Any]:
    asked = select(feedback).where(feedback.c.prediction.in_(ids))
    return {(row.prediction, row.row): row for row in connection.execute(asked)}


def _rows_of(row: Any, outcomes: dict[tuple[str, int], Any]) -> Iterator[Line]:
    """A line for each row; of one thing that was answered for all, the first has it."""
    inputs, outputs = _each(row.inputs, row.rows), _each(row.outputs, row.rows)
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


def _each(listed: str, rows: int) -> list[str | None]:
    if rows == 1:
        return [listed[1:-1]]
    found: list[str | None] = [orjson.dumps(each).decode() for each in orjson.loads(listed)]
    return found + [None] * (rows - len(found))
