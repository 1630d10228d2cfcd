"""What is counted and timed, for Prometheus; each version's children are bound once, when it goes live.

Those of the last versions that are loaded no more are kept for a while, so that labels are bounded.
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
_ENDING = (*_VERSION, "reason")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of the buckets for times."""
_MAX_RETIRED = 20
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)


class ExitReason(StrEnum):
    """Why a model process has ended, though its version goes on."""

    CRASH = "crash"
    """It died, or was killed by somebody else: the kernel, for want of memory, is one."""
    HANG = "hang"
    """It was killed, as it had not answered within the deadline."""
    MEMORY = "memory"
    """It was replaced, as it had grown too large."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a version that is loaded tells of this moment, asked from any thread when somebody looks."""

    waiting: Callable[[], int]
    """Requests that wait for a model process."""
    in_flight: Callable[[], int]
    """Requests that hold the version."""
    memory: Callable[[], Sequence[int | None]]
    """The resident bytes of each model process, None of one that is not up."""


@dataclass(frozen=True, slots=True)
class VersionMetrics:
    """The metrics of one model version."""

    answered: Counter
    """Requests that were answered with 200."""
    seconds: Histogram
    rows: Counter
    batch_rows: Histogram
    queue_seconds: Histogram
    model_seconds: Histogram
    hits: Counter
    """Answered from the cache."""
    deaths: Mapping[ExitReason, Counter]
    restarts: Mapping[ExitReason, Counter]
    retire: Callable[[], None]
    """To be called once, when the version is loaded no more."""

    def observe_call(self, rows: int, waited: float, took: float) -> None:
        """Note a call of the model, for which the first of its requests had waited."""
        self.batch_rows.observe(rows)
        self.queue_seconds.observe(waited)
        self.model_seconds.observe(took)


class Metrics(Collector):
    """All metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for of_process in (ProcessCollector, PlatformCollector, GCCollector):
            of_process(registry=self.registry)
        self._requests = self._counter(
            "serving_requests_total",
            "Requests for predictions, by status code; model and version are empty where none was leased.",
            (*_VERSION, "code"),
        )
        self._seconds = self._histogram(
            "serving_request_duration_seconds",
            "Time from the head of a request to its answer, of those answered with 200.",
        )
        self._rows = self._counter("serving_rows_total", "Rows that were answered.")
        self._batch_rows = self._histogram("serving_batch_rows", "Rows in each call of the model.", _ROWS)
        self._queue_seconds = self._histogram(
            "serving_queue_duration_seconds",
            "Time that the first request of each call of the model had waited for a model process.",
        )
        self._model_seconds = self._histogram(
            "serving_model_duration_seconds", "Time of each call of the model, of those that failed as well."
        )
        self._hits = self._counter("serving_cache_hits_total", "Requests answered from the cache.")
        self._deaths = self._counter(
            "serving_process_deaths_total",
            "Model processes that ended though their version went on: by a crash, a hang, or their memory.",
            _ENDING,
        )
        self._restarts = self._counter(
            "serving_process_restarts_total",
            "Model processes that took the place of one that had ended.",
            _ENDING,
        )
        self.loop_lag = Histogram(
            "serving_event_loop_lag_seconds",
            "Time by which a timer of the event loop was late: while it is, no request is answered.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.versions: dict[tuple[str, str], VersionMetrics] = {}
        """Those of each model and version that is counted."""
        self._loaded: dict[tuple[str, str], list[Gauges]] = {}
        self._retired: list[tuple[str, str]] = []
        self.registry.register(self)

    def _counter(self, name: str, told: str, labels: tuple[str, ...] = _VERSION) -> Counter:
        return Counter(name, told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(name, told, _VERSION, registry=self.registry, buckets=buckets)

    def for_version(self, model: str, version: str | None, gauges: Gauges) -> VersionMetrics:
        """The metrics of a version that takes requests."""
        labels = (model, version or "")
        self._loaded[labels] = [*self._loaded.get(labels, []), gauges]
        if labels in self._retired:
            self._retired.remove(labels)
        self.versions[labels] = VersionMetrics(
            answered=self._requests.labels(*labels, "200"),
            seconds=self._seconds.labels(*labels),
            rows=self._rows.labels(*labels),
            batch_rows=self._batch_rows.labels(*labels),
            queue_seconds=self._queue_seconds.labels(*labels),
            model_seconds=self._model_seconds.labels(*labels),
            hits=self._hits.labels(*labels),
            deaths={ending: self._deaths.labels(*labels, ending) for ending in ExitReason},
            restarts={ending: self._restarts.labels(*labels, ending) for ending in ExitReason},
            retire=partial(self._retire, labels, gauges),
        )
        return self.versions[labels]

    def requests(self) -> Iterator[tuple[str, str, str, float]]:
        """Model, version and status of requests, and how many there were."""
        for metric in self._requests.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    labels = sample.labels
                    yield labels["model"], labels["version"], labels["code"], sample.value

    def count(self, model: str, version: str | None, code: int) -> None:
        """Count a request that was not answered with 200."""
        self._requests.labels(model, version or "", str(code)).inc()

    def collect(self) -> Iterable[Metric]:
        """What the versions that are loaded tell of this moment; several of one name and number are added."""
        waiting = GaugeMetricFamily(
            "serving_waiting_requests", "Requests that wait for a model process.", labels=_VERSION
        )
        in_flight = GaugeMetricFamily(
            "serving_inflight_requests", "Requests that are being answered.", labels=_VERSION
        )
        processes = GaugeMetricFamily(
            "serving_processes", "Model processes that are up and have loaded the model.", labels=_VERSION
        )
        memory = GaugeMetricFamily(
            "serving_process_resident_memory_bytes",
            "Memory that a model process holds, what it shares with others included.",
            labels=(*_VERSION, "process"),
        )
        for labels, loaded in list(self._loaded.items()):
            waiting.add_metric(labels, sum(gauges.waiting() for gauges in loaded))
            in_flight.add_metric(labels, sum(gauges.in_flight() for gauges in loaded))
            held = [held for gauges in loaded for held in gauges.memory()]
            processes.add_metric(labels, sum(resident is not None for resident in held))
            for place, resident in enumerate(held):
                if resident is not None:
                    memory.add_metric((*labels, str(place)), resident)
        return waiting, in_flight, processes, memory

    def _retire(self, labels: tuple[str, str], gauges: Gauges) -> None:
        if left := [each for each in self._loaded[labels] if each is not gauges]:
            self._loaded[labels] = left
            return
        del self._loaded[labels]
        self._retired.append(labels)
        if len(self._retired) > _MAX_RETIRED:
            self._forget(self._retired.pop(0))

    def _forget(self, labels: tuple[str, str]) -> None:
        version = dict(zip(_VERSION, labels, strict=True))
        del self.versions[labels]
        for each in (
            self._requests,
            self._seconds,
            self._rows,
            self._batch_rows,
            self._queue_seconds,
            self._model_seconds,
            self._hits,
            self._deaths,
            self._restarts,
        ):
            each.remove_by_labels(version)
