"""Prometheus metrics of requests, model calls and model processes.

The children of a version are bound once, when it goes live. The metrics of the last unloaded versions stay
for a while; older ones are removed, which bounds the number of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_VERSION = ("model", "version")
_EXIT = (*_VERSION, "reason")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the histogram buckets, in seconds."""
_MAX_RETIRED = 20
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)


class ExitReason(StrEnum):
    """Why a model process of a loaded version ended."""

    CRASH = "crash"
    """It died, or something outside the service killed it, such as the kernel for lack of memory."""
    HANG = "hang"
    """The service killed it after a call exceeded the deadline."""
    MEMORY = "memory"
    """The service replaced it because it exceeded the memory limit."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """Current values of a loaded version. Any thread may call the functions."""

    waiting: Callable[[], int]
    """Requests that wait for a model process."""
    in_flight: Callable[[], int]
    """Requests that hold a lease of the version."""
    memory: Callable[[], Sequence[int | None]]
    """Resident bytes of each model process; None if the process is not up."""


@dataclass(frozen=True, slots=True)
class VersionMetrics:
    """The metrics of one model version."""

    succeeded: Counter
    """Requests with status 200."""
    seconds: Histogram
    rows: Counter
    batch_rows: Histogram
    queue_seconds: Histogram
    model_seconds: Histogram
    cache_hits: Counter
    deaths: Mapping[ExitReason, Counter]
    restarts: Mapping[ExitReason, Counter]
    retire: Callable[[], None]
    """Must be called once, when the version is unloaded."""

    def observe_call(self, rows: int, queue_seconds: float, model_seconds: float) -> None:
        """Record a model call, with the time that its first request spent in the queue."""
        self.batch_rows.observe(rows)
        self.queue_seconds.observe(queue_seconds)
        self.model_seconds.observe(model_seconds)


class Metrics(Collector):
    """All metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._requests = self._counter(
            "serving_requests_total",
            "Prediction requests by status code; model and version are empty if no version was leased.",
            (*_VERSION, "code"),
        )
        self._seconds = self._histogram(
            "serving_request_duration_seconds",
            "Time from the request head to the response, for requests with status 200.",
        )
        self._rows = self._counter("serving_rows_total", "Predicted rows.")
        self._batch_rows = self._histogram("serving_batch_rows", "Rows per model call.", _ROWS)
        self._queue_seconds = self._histogram(
            "serving_queue_duration_seconds",
            "Time in the queue of the first request of each model call.",
        )
        self._model_seconds = self._histogram(
            "serving_model_duration_seconds", "Duration of each model call, including failed calls."
        )
        self._cache_hits = self._counter(
            "serving_cache_hits_total", "Requests served from the prediction cache."
        )
        self._deaths = self._counter(
            "serving_process_deaths_total",
            "Unplanned exits of model processes by reason: crash, hang or memory.",
            _EXIT,
        )
        self._restarts = self._counter(
            "serving_process_restarts_total",
            "Model processes started to replace one that exited, by the reason of the exit.",
            _EXIT,
        )
        self.loop_lag = Histogram(
            "serving_event_loop_lag_seconds",
            "Delay of an event loop timer; requests wait for as long.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.versions: dict[tuple[str, str], VersionMetrics] = {}
        """The metrics by model and version."""
        self._loaded: dict[tuple[str, str], list[Gauges]] = {}
        self._retired: list[tuple[str, str]] = []
        self.registry.register(self)

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = _VERSION) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(name, help_text, _VERSION, registry=self.registry, buckets=buckets)

    def for_version(self, model: str, version: str | None, gauges: Gauges) -> VersionMetrics:
        """Return the metrics of a version that is about to receive requests."""
        labels = (model, version or "")
        self._loaded[labels] = [*self._loaded.get(labels, []), gauges]
        if labels in self._retired:
            self._retired.remove(labels)
        self.versions[labels] = VersionMetrics(
            succeeded=self._requests.labels(*labels, "200"),
            seconds=self._seconds.labels(*labels),
            rows=self._rows.labels(*labels),
            batch_rows=self._batch_rows.labels(*labels),
            queue_seconds=self._queue_seconds.labels(*labels),
            model_seconds=self._model_seconds.labels(*labels),
            cache_hits=self._cache_hits.labels(*labels),
            deaths={reason: self._deaths.labels(*labels, reason) for reason in ExitReason},
            restarts={reason: self._restarts.labels(*labels, reason) for reason in ExitReason},
            retire=partial(self._retire, labels, gauges),
        )
        return self.versions[labels]

    def requests(self) -> Iterator[tuple[str, str, str, float]]:
        """Yield the model, version, status code and number of requests."""
        for metric in self._requests.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    labels = sample.labels
                    yield labels["model"], labels["version"], labels["code"], sample.value

    def count(self, model: str, version: str | None, code: int) -> None:
        """Count a request with a status other than 200."""
        self._requests.labels(model, version or "", str(code)).inc()

    def collect(self) -> Iterable[Metric]:
        """Return the current values of loaded versions; several with the same labels are added."""
        waiting = GaugeMetricFamily(
            "serving_waiting_requests", "Requests that wait for a model process.", labels=_VERSION
        )
        in_flight = GaugeMetricFamily("serving_inflight_requests", "Requests in progress.", labels=_VERSION)
        processes = GaugeMetricFamily(
            "serving_processes", "Model processes that are up with the model loaded.", labels=_VERSION
        )
        memory = GaugeMetricFamily(
            "serving_process_resident_memory_bytes",
            "Resident memory of a model process, including shared memory.",
            labels=(*_VERSION, "process"),
        )
        for labels, loaded in list(self._loaded.items()):
            waiting.add_metric(labels, sum(gauges.waiting() for gauges in loaded))
            in_flight.add_metric(labels, sum(gauges.in_flight() for gauges in loaded))
            sizes = [size for gauges in loaded for size in gauges.memory()]
            processes.add_metric(labels, sum(size is not None for size in sizes))
            for index, size in enumerate(sizes):
                if size is not None:
                    memory.add_metric((*labels, str(index)), size)
        return waiting, in_flight, processes, memory

    def _retire(self, labels: tuple[str, str], gauges: Gauges) -> None:
        if remaining := [loaded for loaded in self._loaded[labels] if loaded is not gauges]:
            self._loaded[labels] = remaining
            return
        del self._loaded[labels]
        self._retired.append(labels)
        if len(self._retired) > _MAX_RETIRED:
            self._forget(self._retired.pop(0))

    def _forget(self, labels: tuple[str, str]) -> None:
        version = dict(zip(_VERSION, labels, strict=True))
        del self.versions[labels]
        for metric in (
            self._requests,
            self._seconds,
            self._rows,
            self._batch_rows,
            self._queue_seconds,
            self._model_seconds,
            self._cache_hits,
            self._deaths,
            self._restarts,
        ):
            metric.remove_by_labels(version)
