"""Compute the quality of versions periodically, in a thread of the journal's process.

The front has none of this work: the thread reads the database over a connection of its own, and its results
reach the front as messages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, Row, select

from serving.errors import JournalUnavailable
from serving.journal import database, outcome_rows, row_builder
from serving.journal.database import transaction
from serving.journal.quality import QualityWindow
from serving.journal.quality_metrics import measure, slices_of
from serving.journal.schema import versions

log = logging.getLogger("serving.journal")
_MAX_VERSIONS = 20
_MAX_AGE_SECONDS = 600.0
"""After this time, a version is computed again without new feedback: old predictions leave the window."""
_MAX_LOAD = 0.1
"""The share of a CPU that the thread uses at most."""
_outputs = lru_cache(maxsize=64)(row_builder.outputs)


class QualityMonitor:
    """Computes the quality of the versions that have received feedback last.

    Args:
        url: The journal's database.
        send: Receives the quality of all versions when one of them has changed.
        days: The age of the oldest predictions, in days.
        seconds: The interval between two computations.
        columns: The input columns by whose values quality is computed too.
    """

    def __init__(
        self,
        url: str,
        send: Callable[[list[dict[str, Any]]], None],
        days: float,
        seconds: float,
        columns: Sequence[str],
    ) -> None:
        self._engine: Engine = database.connect(url, reads=True)
        self._days, self._seconds, self._columns, self._send = days, seconds, columns, send
        self._known: dict[int, tuple[datetime, float, QualityWindow | None]] = {}
        """By version: the time of the last feedback, that of the computation, and its result."""

    def run(self) -> None:
        """Compute until the process exits."""
        pause = self._seconds
        while True:
            time.sleep(pause)
            began = time.thread_time()
            try:
                if self.tick(time.monotonic()):
                    self._send([asdict(window) for _, _, window in self._known.values() if window])
            except JournalUnavailable:
                pass  # the writer reports it
            except Exception:  # a defect must not end the thread
                log.exception("the quality of versions could not be computed")
            pause = max(self._seconds, (time.thread_time() - began) / _MAX_LOAD)

    def tick(self, now: float) -> bool:
        """Compute the versions with new feedback; return whether a result has changed."""
        since = datetime.now(UTC) - timedelta(days=self._days)
        recent = select(versions).where(versions.c.feedback_at >= since)
        with transaction(self._engine) as connection:
            query = recent.order_by(versions.c.feedback_at.desc()).limit(_MAX_VERSIONS)
            rows = [*connection.execute(query)]
        before = self._known
        self._known = {row.id: before[row.id] for row in rows if row.id in before}
        for row in rows:
            at, computed, _ = self._known.get(row.id, (None, 0.0, None))
            if at != row.feedback_at or now - computed > _MAX_AGE_SECONDS:
                self._known[row.id] = row.feedback_at, now, self._compute(row, since)
        return self._known != before

    def _compute(self, row: Row[Any], since: datetime) -> QualityWindow | None:
        """Return the quality of a version; None without outcomes in the window."""
        with transaction(self._engine) as connection:
            pairs, is_limited = outcome_rows.read(connection, row.id, since, self._columns)
        try:
            rows, used = outcome_rows.to_arrays(_outputs(row.outputs), pairs)
            measured = measure(rows, slices_of(self._columns, used))
        except Exception:  # predictions of any form are recorded; one version must not affect the others
            log.exception("the quality of a version could not be computed", extra={"model": row.model})
            return None
        at = row.feedback_at if row.feedback_at.tzinfo else row.feedback_at.replace(tzinfo=UTC)
        values = [(each.metric, each.label, each.where, each.value) for each in measured]
        version = row.model, row.version, row.model_id, row.run_id, row.source
        milliseconds = int(at.timestamp() * 1000)
        return QualityWindow(*version, milliseconds, self._days, is_limited, values) if values else None
