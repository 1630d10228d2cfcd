"""Rows of the journal whose outcome is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import insert

from serving.errors import JournalUnavailable
from serving.journal import database, evaluation_rows
from serving.journal.schema import feedback, first_id, predictions, versions

NOW = datetime.now(UTC)
ANY = '{"form": "GenericOutput", "values": []}'
IRIS = '{"form": "Probabilities", "classes": ["setosa", "virginica"]}'


Entry = tuple[int, list[Any], dict[int, Any], float]
"""The version, the rows, the outcomes by row, and the age in days of a prediction."""


def journal(folder: Path, entries: Sequence[Entry], outputs: str = ANY) -> str:
    """Return the URL of a journal with predictions of version 1, of iris, and of version 2, of wine."""
    address = f"sqlite:///{folder / 'journal.db'}"
    engine = database.connect(address)
    database.upgrade(engine)
    with database.transaction(engine) as connection:
        for identity, name in ((1, "iris"), (2, "wine")):
            version = {"id": identity, "model": name, "version": "1", "source": "x", "outputs": outputs}
            connection.execute(insert(versions).values(**version))
        for number, (version_id, rows, known, days) in enumerate(entries):
            at = NOW - timedelta(days=days)
            prediction = first_id(at)[:-6] + f"{number:06d}"
            connection.execute(insert(predictions).values(_prediction(prediction, at, version_id, rows)))
            values = {"prediction": prediction, "at": at}
            recorded = [
                values | {"row": row, "outcome": json.dumps(outcome)} for row, outcome in known.items()
            ]
            if recorded:
                connection.execute(insert(feedback), recorded)
    engine.dispose()
    return address


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return a journal with 1,200 predictions of one row, one of two rows, and one of another model."""
    entries: list[Entry] = [
        (1, [{"x": float(number)}], {0: number % 2}, 0.1 + number / 1e5) for number in range(1200)
    ]
    entries.append((1, [{"x": -1.0, "y": 5}, {"x": -2.0}], {1: 1}, 0.05))
    entries.append((1, [{"x": 99.0}], {}, 0.04))
    entries.append((1, [{"x": 77.0}], {0: 1}, 9.0))
    entries.append((2, [{"x": 88.0}], {0: 1}, 0.03))
    return journal(tmp_path, entries)


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
    found = evaluation_rows.read(url, "iris", 7, "target")
    rows = {row["x"]: row["target"] for row in found.table.to_pylist()}
    assert len(found.table) == 1201
    assert rows == {-2.0: 1} | {float(number): number % 2 for number in range(1200)}
    assert evaluation_rows.read(url, "iris", 7, "target").digest == found.digest
    assert evaluation_rows.read(url, "wine", 7, "target").digest != found.digest


def test_latest_rows_are_kept_within_the_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_rows, "MAX_ROWS", 500)
    found = evaluation_rows.read(url, "iris", 7, "target")
    assert found.table.column("x").to_pylist() == [-2.0, *map(float, range(499))]


def test_latest_rows_are_kept_within_the_limit_of_bytes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_rows, "MAX_BYTES", 10_000)
    found = evaluation_rows.read(url, "iris", 7, "target")
    assert found.table.column("x").to_pylist() == [-2.0, *map(float, range(499))]


def test_inputs_of_a_batch_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"x": number, "text": "a" * 100} for number in range(2000)]
    url = journal(tmp_path, [(1, rows, {row: row % 2 for row in range(2000)}, day) for day in (1, 2)])
    parsed: list[int] = []
    loads = orjson.loads

    def counting(text: str) -> Any:
        parsed.append(len(text))
        return loads(text)

    monkeypatch.setattr(orjson, "loads", counting)
    assert len(evaluation_rows.read(url, "iris", 7, "target").table) == 4000
    assert sum(parsed) < 2.1 * len(json.dumps(rows))


def test_batch_is_cut_at_the_limit_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_rows, "MAX_ROWS", 7)
    rows = [{"x": number} for number in range(5)]
    url = journal(tmp_path, [(1, rows, dict.fromkeys(range(5), 1), day) for day in (1, 2)])
    found = evaluation_rows.read(url, "iris", 7, "target")
    assert found.table.column("x").to_pylist() == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize(
    ("outputs", "outcomes", "expected"),
    [
        (IRIS, ["setosa", 1, 0], ["setosa", "virginica", "setosa"]),
        (ANY, [0, 1, 2], [0, 1, 2]),
        (ANY, [0, 1, 0.5], [0, 1, 0.5]),
        (ANY, [0, 1, 2**70], [0, 1, 2**70]),
        (ANY, [True, False, True], [True, False, True]),
        (ANY, ["setosa", 0, 1.0], ["setosa", "0", "1"]),
        (ANY, [True, 0, 1.5], ["True", "0", "1.5"]),
        (ANY, [None, [1], {"a": 1}], []),
    ],
)
def test_outcomes_have_one_form(
    tmp_path: Path, outputs: str, outcomes: list[Any], expected: list[Any]
) -> None:
    rows = [{"x": 1, "target": 7}] * 3
    url = journal(tmp_path, [(1, rows, dict(enumerate(outcomes)), 1)], outputs)
    found = evaluation_rows.read(url, "iris", 7, "outcome").table
    assert found.column("outcome").to_pylist() == expected
    assert "target" not in found.column_names or {*found.column("target").to_pylist()} == {7}


def test_inputs_of_predictions_are_combined(tmp_path: Path) -> None:
    """Test inputs whose types differ between predictions, and those that have no named columns."""
    inputs = [{"x": 1}, {"x": 2.5}, {"x": None, "y": "a"}, [1.0, 2.0], 3.0, {}]
    url = journal(tmp_path, [(1, [row], {0: 1}, 1 + day / 10) for day, row in enumerate(inputs)])
    found = evaluation_rows.read(url, "iris", 7, "outcome").table.to_pylist()
    assert [(row["x"], row["y"]) for row in found] == [(1, None), (2.5, None), (None, "a")]


def test_inputs_of_several_types_are_reported(tmp_path: Path) -> None:
    url = journal(tmp_path, [(1, [{"x": value}], {0: 1}, 1) for value in (1, "a")])
    with pytest.raises(JournalUnavailable, match="several types"):
        evaluation_rows.read(url, "iris", 7, "outcome")


def test_model_without_outcomes_has_no_rows(url: str) -> None:
    assert len(evaluation_rows.read(url, "other", 7, "target").table) == 0


def test_missing_database_is_reported(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailable):
        evaluation_rows.read(f"sqlite:///{tmp_path / 'missing' / 'journal.db'}", "iris", 7, "target")
