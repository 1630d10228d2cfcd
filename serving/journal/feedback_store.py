"""Feedback in the database: true outcomes beside their predictions, and the sums over them by version."""

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
from serving.journal.quality import Quality
from serving.journal.schema import feedback, predictions, versions
from serving.journal.scoring import InvalidOutcome, Score, score

_MAX_FIELD_ERRORS = 100
_outputs = lru_cache(maxsize=64)(row_builder.outputs)


def model_qualities(connection: Connection) -> list[Quality]:
    """How right versions were, those first on which feedback came last."""
    known = select(versions).where(versions.c.feedback > 0)
    found = connection.execute(known.order_by(versions.c.feedback_at.desc()).limit(_MAX_FIELD_ERRORS))
    return [_quality(row) for row in found]


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


# -- taking it


def record_feedback(connection: Connection, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Take all of the feedback, or nothing of it, and tell what became of it.

    `models` are those that the caller may speak of, or None; predictions of others are unknown to it. Either
    `unknown` (indices of what is not in the journal) or `misfits` (indices, and what is wrong) is why it was
    not taken.
    """
    given: Sequence[Mapping[str, Any]] = asked["feedback"]
    found = _found(connection, {each["prediction_id"] for each in given})
    if asked["models"] is not None:
        found = {identity: row for identity, row in found.items() if row.model in asked["models"]}
    if unknown := [index for index, each in enumerate(given) if each["prediction_id"] not in found]:
        return {"unknown": unknown}
    predicted = {identity: orjson.loads(row.outputs) for identity, row in found.items()}
    verdicts, misfits = [], []
    for index, each in enumerate(given):
        identity, place = each["prediction_id"], each["row"]
        try:
            verdicts.append(_score_row(found[identity], predicted[identity], place, each["outcome"]))
        except InvalidOutcome as error:
            misfits.append([index, "row" if place >= found[identity].rows else "outcome", str(error)])
    if misfits:
        return {"misfits": misfits}
    _upsert(connection, given, [found[each["prediction_id"]].version for each in given], verdicts)
    return {"recorded": len(given)}


def _found(connection: Connection, identities: set[str]) -> dict[str, Row[Any]]:
    columns = (predictions.c.id, predictions.c.rows, predictions.c.outputs, predictions.c.version)
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    asked = select(*columns, versions.c.model, versions.c.outputs.label("form")).select_from(joined)
    found: dict[str, Row[Any]] = {}
    for some in _portions(identities):
        found |= {row.id: row for row in connection.execute(asked.where(predictions.c.id.in_(some)))}
    return found


def _score_row(row: Row[Any], predicted: list[Any], place: int, outcome: Any) -> Score:
    if place >= row.rows:
        raise InvalidOutcome(f"Input should be less than {row.rows}, the rows of this prediction")
    if len(predicted) != row.rows:  # one thing for all rows
        predicted = predicted[:1] * row.rows
    return score(_outputs(row.form), predicted[place], outcome)


def _upsert(
    connection: Connection,
    given: Sequence[Mapping[str, Any]],
    versions_of: Sequence[int],
    verdicts: Sequence[Score],
) -> None:
    """Have these outcomes be those of their rows, and the sums of the versions those with them."""
    now = datetime.now(UTC)
    sums = _sums(connection, {*versions_of})
    known = _previous(connection, {each["prediction_id"] for each in given})
    made: dict[_Place, dict[str, Any]] = {}
    for each, version, verdict in zip(given, versions_of, verdicts, strict=True):
        place = each["prediction_id"], each["row"]
        if before := known.get(place):
            sums[version].add(before, -1)
        sums[version].add(verdict)
        known[place] = verdict
        told = {"at": now, "outcome": orjson.dumps(each["outcome"]).decode()}
        made[place] = dict(zip(_PLACE, place, strict=True)) | told | asdict(verdict)
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    insert = dialect.insert(feedback)
    changed = {name: insert.excluded[name] for name in ("at", "outcome", "correct", "error")}
    connection.execute(insert.on_conflict_do_update(index_elements=_PLACE, set_=changed), [*made.values()])
    for version, summed in sums.items():
        new = update(versions).where(versions.c.id == version)
        connection.execute(new.values(feedback_at=now, **summed.columns))


_Place = tuple[str, int]
_PLACE = ("prediction", "row")


def _sums(connection: Connection, of: set[int]) -> dict[int, Sums]:
    """The sums of versions, which nobody else changes in this transaction."""
    # In one order, so that two who write at once do not wait for each other.
    asked = select(versions).where(versions.c.id.in_(of)).order_by(versions.c.id)
    found = connection.execute(asked.with_for_update(key_share=True))
    return {row.id: Sums.of(row) for row in found}


def _previous(connection: Connection, identities: set[str]) -> dict[_Place, Score]:
    """What was said of these predictions before, by row."""
    columns = select(feedback.c.prediction, feedback.c.row, feedback.c.correct, feedback.c.error)
    found: dict[_Place, Score] = {}
    for some in _portions(identities):
        for row in connection.execute(columns.where(feedback.c.prediction.in_(some))):
            found[row.prediction, row.row] = Score(row.correct, row.error)
    return found


def _portions(identities: set[str]) -> Iterator[list[str]]:
    """As many at once as a database takes."""
    listed = sorted(identities)
    return (listed[start : start + 500] for start in range(0, len(listed), 500))
