"""The Prometheus metrics of the journal."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from serving.journal.quality import Quality


class JournalMetrics:
    """The metrics of one journal."""

    def __init__(self, registry: CollectorRegistry) -> None:
        records = Counter(
            "serving_journal_records_total",
            "Recorded predictions by outcome: written or dropped; pending ones are not counted.",
            ("outcome",),
            registry=registry,
        )
        self.written, self.dropped = records.labels("written"), records.labels("dropped")
        self.pending = Gauge(
            "serving_journal_pending_records",
            "Predictions that wait to be written to the database.",
            registry=registry,
        )
        self.written_at = Gauge(
            "serving_journal_last_write_timestamp_seconds",
            "Time of the last write of predictions.",
            registry=registry,
        )
        self.failing = Gauge(
            "serving_journal_failing", "1 while the database is unavailable.", registry=registry
        )
        self.feedback = Counter(
            "serving_feedback_total", "Outcomes accepted by /feedback.", registry=registry
        )
        self._quality = Gauge(
            "serving_quality",
            "Quality of a version according to feedback: accuracy, mean_absolute_error, …",
            ("model", "version", "metric"),
            registry=registry,
        )

    def update(self, qualities: Sequence[Quality]) -> None:
        """Replace the quality of all versions; of two with one name and number, the first counts."""
        self._quality.clear()
        for quality in reversed(qualities):
            for name, value in (quality.metrics | {"feedback_count": quality.feedback}).items():
                self._quality.labels(quality.model, quality.label, name).set(value)
