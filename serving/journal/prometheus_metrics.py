"""The Prometheus metrics of the journal."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from serving.journal.quality import Quality, QualityWindow


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
        self._recent = Gauge(
            "serving_recent_quality",
            "Quality of a version on the predictions of the last days, of all rows, a class or a slice.",
            ("model", "version", "metric", "class", "slice"),
            registry=registry,
        )

    def update(self, qualities: Sequence[Quality]) -> None:
        """Replace the quality of all versions; of two with one name and number, the first counts."""
        self._quality.clear()
        for quality in reversed(qualities):
            for name, value in (quality.metrics | {"feedback_count": quality.feedback}).items():
                self._quality.labels(quality.model, quality.label, name).set(value)

    def update_recent(self, windows: Sequence[QualityWindow]) -> None:
        """Replace the recent quality of all versions; of two with one name and number, the first counts."""
        self._recent.clear()
        for window in reversed(windows):
            for metric, label, where, value in window.values:
                self._recent.labels(window.model, window.label, metric, label, where).set(value)
