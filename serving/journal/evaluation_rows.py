"""Reads the rows of a model whose true outcome was recorded, as a table with the outcome in one column."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson
import pyarrow as pa
from sqlalchemy import Connection, select

from serving.codecs.prediction_schema import ClassLabels, PredictionSchema, Probabilities
from serving.errors import JournalUnavailable
from serving.feature_interface import ReadRecordedOutcomes, RecordedOutcomes
from serving.journal import row_builder
from serving.journal.database import check_exists, connect, transaction
from serving.journal.outcome_rows import readable
from serving.journal.schema import feedback, first_id, predictions, versions

MAX_ROWS = 200_000
MAX_BYTES = 256 * 2**20
"""The inputs that are read, as JSON."""
_schema = lru_cache(maxsize=64)(row_builder.outputs)


def reader(url: str) -> ReadRecordedOutcomes:
    """Return a function that reads recorded outcomes from a database, in a thread."""

    async def read_outcomes(model: str, days: int, column: str) -> RecordedOutcomes:
        return await asyncio.to_thread(read, url, model, days, column)

    return read_outcomes


def read(url: str, model: str, days: int, column: str) -> RecordedOutcomes:
    """Return the rows that the versions of a model predicted in the last days, with their outcomes.

    Of more than 200,000 rows, or 256 MB, these are the latest. Rows without named columns are left out, and
    so are outcomes that are null, a list or an object. A class has its name, also if its number was
    recorded. Outcomes that are not all numbers or all truth values are text.

    Args:
        url: the database.
        model: the name of the model.
        days: the number of days.
        column: the name of the column for the outcomes; an input of this name is left out.

    Raises:
        JournalUnavailable: the database is unavailable.
    """
    engine = connect(url, reads=True)
    since = first_id(datetime.now(UTC) - timedelta(days=days))
    content = hashlib.sha256()
    tables = [pa.table({})]
    outcomes: list[Any] = []
    try:
        check_exists(engine)
        with transaction(engine) as connection:
            for chunk in _chunks(connection, model, since):
                chunk = chunk[: MAX_ROWS - len(outcomes)]
                for row in chunk:
                    content.update(f"{row.prediction} {row.position} {row.recorded}\n".encode())
                outcomes += [row.outcome for row in chunk]
                tables.append(pa.Table.from_pylist(_complete([row.inputs for row in chunk], column)))
                if len(outcomes) == MAX_ROWS:
                    break
        table = pa.concat_tables(tables, promote_options="permissive")
        table = table.append_column(column, _labels(outcomes))
    except (pa.ArrowException, OverflowError) as error:
        raise JournalUnavailable(f"its recorded rows have several types: {error}") from error
    finally:
        engine.dispose()
    return RecordedOutcomes(table, f"sha256:{content.hexdigest()}")


@dataclass(frozen=True, slots=True)
class _Row:
    prediction: str
    position: int
    inputs: dict[str, Any]
    recorded: str
    outcome: Any


def _chunks(connection: Connection, model: str, since: str) -> Iterator[list[_Row]]:
    """Yield the rows with outcomes, the latest predictions first; each list fits into memory."""
    known = (
        select(predictions.c.id, versions.c.outputs)
        .join(versions, predictions.c.version == versions.c.id)
        .where(versions.c.model == model, predictions.c.id >= since)
        .where(predictions.c.id.in_(select(feedback.c.prediction)))
        .order_by(predictions.c.id.desc())
        .limit(MAX_ROWS)
    )
    forms = {row[0]: row[1] for row in connection.execute(known)}
    for ids in readable(connection, [*forms], [predictions.c.inputs], MAX_BYTES):
        if ids is None:
            return
        yield [*_rows(connection, ids, forms)]


def _rows(connection: Connection, ids: Sequence[str], forms: dict[str, str]) -> Iterator[_Row]:
    """Yield the rows of predictions.

    The inputs of a prediction are read and parsed once, although a batch may have an outcome for each row.
    """
    stored = select(predictions.c.id, predictions.c.inputs).where(predictions.c.id.in_(ids))
    inputs = {row[0]: row[1] for row in connection.execute(stored)}
    recorded: dict[str, list[tuple[int, str]]] = {}
    query = select(feedback.c.prediction, feedback.c.row, feedback.c.outcome)
    ordered = query.where(feedback.c.prediction.in_(ids)).order_by(feedback.c.prediction, feedback.c.row)
    for identity, position, outcome in connection.execute(ordered):
        recorded.setdefault(identity, []).append((position, outcome))
    for identity in ids:
        fields = orjson.loads(inputs.pop(identity, "[]"))
        schema = _schema(forms[identity])
        for position, text in recorded.get(identity, ()):
            row = fields[position] if position < len(fields) else None
            outcome = _outcome(schema, orjson.loads(text))
            if row and isinstance(row, dict) and isinstance(outcome, str | int | float):
                yield _Row(identity, position, row, text, outcome)


def _outcome(schema: PredictionSchema, outcome: Any) -> Any:
    """Return the name of a class whose number was recorded, and any other outcome as it is."""
    is_id = isinstance(outcome, int) and not isinstance(outcome, bool)
    if isinstance(schema, Probabilities | ClassLabels) and is_id and 0 <= outcome < len(schema.classes):
        return schema.classes[outcome]
    return outcome


def _labels(outcomes: Sequence[Any]) -> pa.Array:
    """Return outcomes as one column of numbers, of truth values or, if they are mixed, of text."""
    kinds = {type(outcome) for outcome in outcomes}
    if kinds == {bool} or (kinds <= {int} and all(abs(outcome) < 2**63 for outcome in outcomes)):
        return pa.array(outcomes, pa.bool_() if kinds == {bool} else pa.int64())
    if kinds <= {int, float}:
        return pa.array([float(outcome) for outcome in outcomes])
    return pa.array([_text(outcome) for outcome in outcomes])


def _text(outcome: Any) -> str:
    is_whole = isinstance(outcome, float) and outcome.is_integer()
    return str(int(outcome) if is_whole else outcome)


def _complete(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Return rows with all columns but one: Arrow takes those of the first row."""
    names = dict.fromkeys(name for row in rows for name in row if name != column)
    return [{name: row.get(name) for name in names} for row in rows]
