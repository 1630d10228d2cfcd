"""What is counted and timed, for Prometheus; each version's children are bound once, when it is loaded.

Those of the last versions that are loaded no more are kept for a while, so that labels are bounded.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_VERSION = ("model", "version")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_MOST_RETIRED = 20
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
    waiting: Gauge
    """Requests that wait for a model process."""
    retire: Callable[[], None]
    """To be called once, when the version is loaded no more."""


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

        self._waiting = Gauge(
            "serving_waiting_requests",
            "Requests that wait for a model process.",
            _VERSION,
            registry=self.registry,
        )
        self._loaded: Count[tuple[str, str]] = Count()
        self._retired: list[tuple[str, str]] = []

    def of(self, model: str, version: str | None) -> VersionMetrics:
        """The metrics of a version that is loaded."""
        labels = (model, version or "")
        self._loaded[labels] += 1
        if labels in self._retired:
            self._retired.remove(labels)
        return VersionMetrics(
            answered=self._requests.labels(*labels, "200"),
            seconds=self._seconds.labels(*labels),
            rows=self._rows.labels(*labels),
            batch_rows=self._batch_rows.labels(*labels),
            hits=self._hits.labels(*labels),
            waiting=self._waiting.labels(*labels),
            retire=partial(self._retire, labels),
        )

    def count(self, model: str, version: str | None, code: int) -> None:
        """Count a request that was not answered with 200."""
        self._requests.labels(model, version or "", str(code)).inc()

    def _retire(self, labels: tuple[str, str]) -> None:
        self._loaded[labels] -= 1
        if self._loaded[labels]:
            return
        del self._loaded[labels]
        self._waiting.labels(*labels).set_function(lambda: 0)  # what is loaded no more is held no more
        self._retired.append(labels)
        if len(self._retired) > _MOST_RETIRED:
            self._forget(self._retired.pop(0))

    def _forget(self, labels: tuple[str, str]) -> None:
        version = dict(zip(_VERSION, labels, strict=True))
        for each in (
            self._requests,
            self._seconds,
            self._rows,
            self._batch_rows,
            self._hits,
            self._waiting,
        ):
            each.remove_by_labels(version)
