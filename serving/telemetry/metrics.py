"""What is counted and timed, for Prometheus; each version's children are bound once, when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

_VERSION = ("model", "version")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)


@dataclass(frozen=True, slots=True)
class VersionMetrics:
    """The metrics of one model version."""

    answered: Counter
    """Requests that were answered with 200."""
    seconds: Histogram
    rows: Counter
    batch_rows: Histogram
    hits: Counter
    """Answered from the cache."""


class Metrics:
    """All metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "serving_requests_total",
            "Requests for predictions, by status code; model and version are empty where none was leased.",
            (*_VERSION, "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "serving_request_duration_seconds",
            "Time from the head of a request to its answer, of those answered with 200.",
            _VERSION,
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._rows = Counter(
            "serving_rows_total", "Rows that were answered.", _VERSION, registry=self.registry
        )
        self._batch_rows = Histogram(
            "serving_batch_rows",
            "Rows in each call of the model.",
            _VERSION,
            registry=self.registry,
            buckets=_ROWS,
        )
        self._hits = Counter(
            "serving_cache_hits_total", "Requests answered from the cache.", _VERSION, registry=self.registry
        )

    def of(self, model: str, version: str | None) -> VersionMetrics:
        """The metrics of a version."""
        labels = (model, version or "")
        return VersionMetrics(
            answered=self._requests.labels(*labels, "200"),
            seconds=self._seconds.labels(*labels),
            rows=self._rows.labels(*labels),
            batch_rows=self._batch_rows.labels(*labels),
            hits=self._hits.labels(*labels),
        )

    def count(self, model: str, version: str | None, code: int) -> None:
        """Count a request that was not answered with 200."""
        self._requests.labels(model, version or "", str(code)).inc()
