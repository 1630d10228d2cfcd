"""Read a journal's database while the service writes to it."""

from __future__ import annotations

import json
from typing import Any

import httpx
from sqlalchemy import func, select

from serving.journal import database
from serving.journal.database import transaction
from serving.journal.schema import feedback, predictions, versions
from serving.settings.parsing import parse_journal_url
from tests.support.service import Service, until


class JournalReader:
    """The tables of the journal at `url`."""

    def __init__(self, url: str) -> None:
        self.engine = database.connect(parse_journal_url(url))

    def prediction(self, identity: str) -> dict[str, Any]:
        """Return a prediction with the metadata of its version once it is written."""
        facts = (versions.c.model, versions.c.version.label("number"), versions.c.run_id, versions.c.task)
        query = select(predictions, *facts).join(versions).where(predictions.c.id == identity)

        def found() -> Any:
            with transaction(self.engine) as connection:
                return connection.execute(query).mappings().one_or_none()

        row = dict(until(found))
        return row | {name: json.loads(row[name]) for name in ("inputs", "outputs")}

    def ids(self) -> list[str]:
        """Return the ids of all predictions in order."""
        with transaction(self.engine) as connection:
            return [*connection.execute(select(predictions.c.id).order_by(predictions.c.id)).scalars()]

    def count(self) -> int:
        """Return the number of predictions."""
        with transaction(self.engine) as connection:
            return connection.execute(select(func.count()).select_from(predictions)).scalar_one()

    def outcomes(self, identity: str) -> dict[int, Any]:
        """Return the outcomes of a prediction by row."""
        query = select(feedback.c.row, feedback.c.outcome).where(feedback.c.prediction == identity)
        with transaction(self.engine) as connection:
            return {row: json.loads(outcome) for row, outcome in connection.execute(query)}


def recorded(answer: httpx.Response) -> str:
    """Return the prediction id of a response."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-prediction-id"]


_SAMPLES = {
    "written": 'serving_journal_records_total{outcome="written"}',
    "dropped": 'serving_journal_records_total{outcome="dropped"}',
    "pending": "serving_journal_pending_records",
    "failing": "serving_journal_failing",
}


def measured(service: Service, *names: str) -> list[int]:
    """Return metrics of the journal: `written`, `dropped`, `pending`, `failing`."""
    metrics = service.metrics()
    return [int(metrics[_SAMPLES[name]]) for name in names]
