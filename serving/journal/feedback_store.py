"""Store the true outcomes of predictions in the database, and their sums by version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from math import sqrt
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from serving.journal import row_builder
from serving.journal.feedback_sums import Sums
from serving.journal.outcome_scores import InvalidOutcome, Score, score
from serving.journal.quality import Quality
from serving.journal.schema import feedback, predictions, versions

_MAX_QUALITIES = 100
_outputs = lru_cache(maxsize=64)(row_builder.outputs)


def model_qualities(connection: Connection) -> list[Quality]:
    """Return the quality of versions, those with the latest feedback first."""
    known = select(versions).where(versions.c.feedback > 0)
    rows = connection.execute(known.order_by(versions.c.feedback_at.desc()).limit(_MAX_QUALITIES))
    return [_quality(row) for row in rows]


def _quality(row: Row[Any]) -> Quality:
    at = row.feedback_at if row.feedback_at.tzinfo else row.feedback_at.replace(tzinfo=UTC)
    sums = Sums.of(row)
    return Quality(
        row.model,
        row.version,
        row.model_id,
        row.run_id,
        row.source,
        int(at.timestamp() * 1000),
        sums.feedback,
        sums.correct / sums.classed if sums.classed else None,
        float(sums.absolute_errors / sums.measured) if sums.measured else None,
        sqrt(sums.squared_errors / sums.measured) if sums.measured else None,
    )


def record_feedback(connection: Connection, request: Mapping[str, Any]) -> dict[str, Any]:
    """Store all of the feedback or none of it, and return the result.

    Args:
        connection: The connection, within a transaction.
        request: `feedback`, a list of outcomes; and `models`, the models that the client may use, or None.
            Predictions of other models are unknown to it.

    Returns:
        `recorded`, the number of outcomes; or `unknown`, the indices of those whose prediction is not in the
        journal; or `misfits`, the index, the field and the message of those that are invalid.
    """
    entries: Sequence[Mapping[str, Any]] = request["feedback"]
    known = _predictions(connection, {entry["prediction_id"] for entry in entries})
    if request["models"] is not None:
        known = {identity: row for identity, row in known.items() if row.model in request["models"]}
    if unknown := [index for index, entry in enumerate(entries) if entry["prediction_id"] not in known]:
        return {"unknown": unknown}
    predicted = {identity: orjson.loads(row.outputs) for identity, row in known.items()}
    scores, misfits = [], []
    for index, entry in enumerate(entries):
        identity, position = entry["prediction_id"], entry["row"]
        try:
            scores.append(_score_row(known[identity], predicted[identity], position, entry["outcome"]))
        except InvalidOutcome as error:
            field = "row" if position >= known[identity].rows else "outcome"
            misfits.append([index, field, str(error)])
    if misfits:
        return {"misfits": misfits}
    _upsert(connection, entries, [known[entry["prediction_id"]].version for entry in entries], scores)
    return {"recorded": len(entries)}


def _predictions(connection: Connection, identities: set[str]) -> dict[str, Row[Any]]:
    columns = (predictions.c.id, predictions.c.rows, predictions.c.outputs, predictions.c.version)
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    query = select(*columns, versions.c.model, versions.c.outputs.label("form")).select_from(joined)
    rows: dict[str, Row[Any]] = {}
    for ids in _chunks(identities):
        rows |= {row.id: row for row in connection.execute(query.where(predictions.c.id.in_(ids)))}
    return rows


def _score_row(row: Row[Any], predicted: list[Any], position: int, outcome: Any) -> Score:
    if position >= row.rows:
        raise InvalidOutcome(f"Input should be less than {row.rows}, the rows of this prediction")
    if len(predicted) != row.rows:  # one output for all rows
        predicted = predicted[:1] * row.rows
    return score(_outputs(row.form), predicted[position], outcome)


def _upsert(
    connection: Connection,
    entries: Sequence[Mapping[str, Any]],
    versions_of: Sequence[int],
    scores: Sequence[Score],
) -> None:
    """Write the outcomes of rows, and update the sums of the versions."""
    now = datetime.now(UTC)
    sums = _sums(connection, {*versions_of})
    known = _previous(connection, {entry["prediction_id"] for entry in entries})
    rows: dict[_Key, dict[str, Any]] = {}
    for entry, version, row_score in zip(entries, versions_of, scores, strict=True):
        key = entry["prediction_id"], entry["row"]
        if before := known.get(key):
            sums[version].add(before, -1)
        sums[version].add(row_score)
        known[key] = row_score
        values = {"at": now, "outcome": orjson.dumps(entry["outcome"]).decode()}
        rows[key] = dict(zip(_KEY_COLUMNS, key, strict=True)) | values | asdict(row_score)
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    insert = dialect.insert(feedback)
    changed = {name: insert.excluded[name] for name in ("at", "outcome", "correct", "error")}
    statement = insert.on_conflict_do_update(index_elements=_KEY_COLUMNS, set_=changed)
    connection.execute(statement, [*rows.values()])
    for version, summed in sums.items():
        new = update(versions).where(versions.c.id == version)
        connection.execute(new.values(feedback_at=now, **summed.columns))


_Key = tuple[str, int]
_KEY_COLUMNS = ("prediction", "row")


def _sums(connection: Connection, ids: set[int]) -> dict[int, Sums]:
    """Return the sums of versions, and lock their rows until the end of the transaction."""
    # All writers use the same order, so that they do not deadlock.
    query = select(versions).where(versions.c.id.in_(ids)).order_by(versions.c.id)
    rows = connection.execute(query.with_for_update(key_share=True))
    return {row.id: Sums.of(row) for row in rows}


def _previous(connection: Connection, identities: set[str]) -> dict[_Key, Score]:
    """Return the earlier scores of these predictions, by prediction and row."""
    query = select(feedback.c.prediction, feedback.c.row, feedback.c.correct, feedback.c.error)
    scores: dict[_Key, Score] = {}
    for ids in _chunks(identities):
        for row in connection.execute(query.where(feedback.c.prediction.in_(ids))):
            scores[row.prediction, row.row] = Score(row.correct, row.error)
    return scores


def _chunks(identities: set[str]) -> Iterator[list[str]]:
    """Yield lists that a database accepts in one query."""
    ordered = sorted(identities)
    return (ordered[start : start + 500] for start in range(0, len(ordered), 500))
