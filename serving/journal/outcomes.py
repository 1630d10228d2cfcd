"""Feedback in the database: true outcomes beside their predictions, and the sums over them by version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from math import sqrt
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from serving.journal import rows
from serving.journal.quality import Quality
from serving.journal.schema import feedback, predictions, versions
from serving.journal.verdict import Misfit, Verdict, judge

_SUMS = ("feedback", "classed", "correct", "measured", "absolute", "squared")
_MOST_TOLD = 100
_outputs = lru_cache(maxsize=64)(rows.outputs)


def qualities(connection: Connection) -> list[Quality]:
    """How right versions were, those first on which feedback came last."""
    known = select(versions).where(versions.c.feedback > 0)
    found = connection.execute(known.order_by(versions.c.feedback_at.desc()).limit(_MOST_TOLD))
    return [_quality(row) for row in found]


def _quality(row: Row[Any]) -> Quality:
    at = row.feedback_at if row.feedback_at.tzinfo else row.feedback_at.replace(tzinfo=UTC)
    return Quality(
        row.model,
        row.version,
        row.model_id,
        row.run_id,
        int(at.timestamp() * 1000),
        row.feedback,
        row.correct / row.classed if row.classed else None,
        row.absolute / row.measured if row.measured else None,
        sqrt(max(0.0, row.squared) / row.measured) if row.measured else None,
    )


# -- taking it


def take(connection: Connection, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Take all of the feedback, or nothing of it, and tell what became of it.

    `models` are those that the caller may speak of, or None. One of `unknown` (indices of what is not in the
    journal), `forbidden` and `misfits` (indices, and what is wrong) says why it was not taken.
    """
    given: Sequence[Mapping[str, Any]] = asked["feedback"]
    found = _found(connection, {each["prediction_id"] for each in given})
    if unknown := [index for index, each in enumerate(given) if each["prediction_id"] not in found]:
        return {"unknown": unknown}
    if asked["models"] is not None and {row.model for row in found.values()} - {*asked["models"]}:
        return {"forbidden": True}
    predicted = {identity: orjson.loads(row.outputs) for identity, row in found.items()}
    verdicts, misfits = [], []
    for index, each in enumerate(given):
        identity, place = each["prediction_id"], each["row"]
        try:
            verdicts.append(_judged(found[identity], predicted[identity], place, each["outcome"]))
        except Misfit as error:
            misfits.append([index, "row" if place >= found[identity].rows else "outcome", str(error)])
    if misfits:
        return {"misfits": misfits}
    # In one order, so that two who write at once do not wait for each other.
    touched = sorted({row.version for row in found.values()})
    connection.execute(
        select(versions.c.id)
        .where(versions.c.id.in_(touched))
        .order_by(versions.c.id)
        .with_for_update(key_share=True)
    ).all()
    for each, verdict in zip(given, verdicts, strict=True):
        _put(connection, each, found[each["prediction_id"]].version, verdict)
    return {"recorded": len(given)}


def _found(connection: Connection, identities: set[str]) -> dict[str, Row[Any]]:
    columns = (predictions.c.id, predictions.c.rows, predictions.c.outputs, predictions.c.version)
    joined = predictions.join(versions, predictions.c.version == versions.c.id)
    asked = select(*columns, versions.c.model, versions.c.outputs.label("form")).select_from(joined)
    found: dict[str, Row[Any]] = {}
    listed = sorted(identities)
    for start in range(0, len(listed), 500):
        some = asked.where(predictions.c.id.in_(listed[start : start + 500]))
        found |= {row.id: row for row in connection.execute(some)}
    return found


def _judged(row: Row[Any], predicted: list[Any], place: int, outcome: Any) -> Verdict:
    if place >= row.rows:
        raise Misfit(f"Input should be less than {row.rows}, the rows of this prediction")
    if len(predicted) != row.rows:  # one thing for all rows
        predicted = predicted[:1] * row.rows
    return judge(_outputs(row.form), predicted[place], outcome)


def _put(connection: Connection, given: Mapping[str, Any], version: int, verdict: Verdict) -> None:
    """Have this outcome be the one of its row, and the sums of the version those with it."""
    now = datetime.now(UTC)
    key = {"prediction": given["prediction_id"], "row": given["row"]}
    at_row = (feedback.c.prediction == key["prediction"]) & (feedback.c.row == key["row"])
    before = connection.execute(select(feedback.c.correct, feedback.c.error).where(at_row)).one_or_none()
    values = {
        "at": now,
        "outcome": orjson.dumps(given["outcome"]).decode(),
        "correct": verdict.correct,
        "error": verdict.error,
    }
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    made = dialect.insert(feedback).values(**key, **values)
    connection.execute(made.on_conflict_do_update(index_elements=["prediction", "row"], set_=values))
    old = _share(Verdict(before.correct, before.error)) if before else (0,) * len(_SUMS)
    changes = {name: new - was for name, new, was in zip(_SUMS, _share(verdict), old, strict=True)}
    summed = {name: versions.c[name] + change for name, change in changes.items() if change}
    connection.execute(update(versions).where(versions.c.id == version).values(feedback_at=now, **summed))


def _share(verdict: Verdict) -> tuple[float, ...]:
    """What a verdict adds to the sums."""
    error = verdict.error
    is_classed, is_measured = verdict.correct is not None, error is not None
    size = abs(error or 0.0)
    return 1, int(is_classed), int(bool(verdict.correct)), int(is_measured), size, size * size
