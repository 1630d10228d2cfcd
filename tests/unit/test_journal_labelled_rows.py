"""Rows of the journal whose outcome is known."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from serving.errors import JournalUnavailable
from serving.journal import database, labelled_rows
from serving.journal.schema import feedback, first_id, predictions, versions

NOW = datetime.now(UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return a journal with 1,200 predictions of one row, one of two rows, and one of another model."""
    address = f"sqlite:///{tmp_path / 'journal.db'}"
    engine = database.connect(address)
    database.upgrade(engine)
    entries = [(1, [{"x": float(number)}], {0: number % 2}, 0.1 + number / 1e5) for number in range(1200)]
    entries.append((1, [{"x": -1.0, "y": 5}, {"x": -2.0}], {1: 1}, 0.05))
    entries.append((1, [{"x": 99.0}], {}, 0.04))
    entries.append((1, [{"x": 77.0}], {0: 1}, 9.0))
    entries.append((2, [{"x": 88.0}], {0: 1}, 0.03))
    with database.transaction(engine) as connection:
        for identity, name in ((1, "iris"), (2, "wine")):
            version = {"id": identity, "model": name, "version": "1", "source": "x", "outputs": "{}"}
            connection.execute(insert(versions).values(**version))
        for number, (version_id, rows, known, days) in enumerate(entries):
            at = NOW - timedelta(days=days)
            prediction = first_id(at)[:-6] + f"{number:06d}"
            connection.execute(insert(predictions).values(_prediction(prediction, at, version_id, rows)))
            for row, outcome in known.items():
                values = {"prediction": prediction, "row": row, "at": at, "outcome": json.dumps(outcome)}
                connection.execute(insert(feedback).values(**values))
    engine.dispose()
    return address


def _prediction(identity: str, at: datetime, version: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": identity,
        "at": at,
        "version": version,
        "protocol": "http",
        "rows": len(rows),
        "inputs": json.dumps(rows),
        "outputs": "[]",
        "latency": 0.1,
        "request_id": "r",
    }


def test_rows_with_outcomes_of_one_model_are_read(url: str) -> None:
    found = labelled_rows.read(url, "iris", 7, "target")
    rows = {row["x"]: row["target"] for row in found.table.to_pylist()}
    assert len(found.table) == 1201
    assert rows == {-2.0: 1} | {float(number): number % 2 for number in range(1200)}
    assert labelled_rows.read(url, "iris", 7, "target").digest == found.digest
    assert labelled_rows.read(url, "wine", 7, "target").digest != found.digest


def test_latest_rows_are_kept_within_the_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_rows, "MAX_ROWS", 500)
    found = labelled_rows.read(url, "iris", 7, "target")
    assert found.table.column("x").to_pylist() == [-2.0, *map(float, range(499))]


def test_model_without_outcomes_has_no_rows(url: str) -> None:
    assert len(labelled_rows.read(url, "other", 7, "target").table) == 0


def test_missing_database_is_reported(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailable):
        labelled_rows.read(f"sqlite:///{tmp_path / 'missing' / 'journal.db'}", "iris", 7, "target")
