"""Reads the rows of a model whose true outcome was recorded, as a table with the outcome in one column."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
from sqlalchemy import Connection, select

from serving.errors import JournalUnavailable
from serving.feature_interface import ReadRecordedOutcomes, RecordedOutcomes
from serving.journal.database import check_exists, connect, transaction
from serving.journal.schema import feedback, first_id, predictions, versions

MAX_ROWS = 200_000
_PREDICTIONS_PER_QUERY = 500


def reader(url: str) -> ReadRecordedOutcomes:
    """Return a function that reads recorded outcomes from a database, in a thread."""

    async def read_outcomes(model: str, days: int, column: str) -> RecordedOutcomes:
        return await asyncio.to_thread(read, url, model, days, column)

    return read_outcomes


def read(url: str, model: str, days: int, column: str) -> RecordedOutcomes:
    """Return the rows that the versions of a model predicted in the last days, with their outcomes.

    Of more than 200,000 rows, these are the latest.

    Args:
        url: the database.
        model: the name of the model.
        days: the number of days.
        column: the name of the column for the outcomes.

    Raises:
        JournalUnavailable: the database is unavailable.
    """
    engine = connect(url, reads=True)
    try:
        check_exists(engine)
        since = first_id(datetime.now(UTC) - timedelta(days=days))
        rows: list[dict[str, Any]] = []
        content = hashlib.sha256()
        before: str | None = None
        while len(rows) < MAX_ROWS:
            with transaction(engine) as connection:
                chunk = _chunk(connection, model, since, before)
            for identity, inputs, position, outcome in chunk:
                content.update(f"{identity} {position} {outcome}\n".encode())
                rows.append({**orjson.loads(inputs)[position], column: orjson.loads(outcome)})
            if not chunk:
                break
            before = chunk[-1][0]
    finally:
        engine.dispose()
    try:
        return RecordedOutcomes(
            pa.Table.from_pylist(_complete(rows[:MAX_ROWS])), f"sha256:{content.hexdigest()}"
        )
    except pa.ArrowException as error:
        raise JournalUnavailable(f"its recorded rows have several types: {error}") from error


def _chunk(
    connection: Connection, model: str, since: str, before: str | None
) -> list[tuple[str, str, int, str]]:
    """Return the outcomes of the next predictions, the latest first."""
    known = (
        select(predictions.c.id)
        .join(versions, predictions.c.version == versions.c.id)
        .where(versions.c.model == model, predictions.c.id >= since)
        .where(predictions.c.id.in_(select(feedback.c.prediction)))
        .order_by(predictions.c.id.desc())
        .limit(_PREDICTIONS_PER_QUERY)
    )
    if before:
        known = known.where(predictions.c.id < before)
    ids = [identity for (identity,) in connection.execute(known)]
    query = (
        select(predictions.c.id, predictions.c.inputs, feedback.c.row, feedback.c.outcome)
        .join(feedback, feedback.c.prediction == predictions.c.id)
        .where(predictions.c.id.in_(ids))
        .order_by(predictions.c.id.desc(), feedback.c.row)
    )
    return [tuple(row) for row in connection.execute(query)]


def _complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with all columns: Arrow takes those of the first row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]
