"""The state of the service as Prometheus metrics, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving import __version__
from serving.auth.authenticator import Authenticator
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.settings.settings import Settings
from serving.version import Outcome

_MODEL = ("model", "uri")
_COUNTED_OUTCOMES = (Outcome.LIVE, Outcome.REJECTED, Outcome.REVERTED)


class StateCollector(Collector):
    """Collects the live versions, the candidates and the state of the registry; it is thread-safe."""

    def __init__(
        self,
        followers: Sequence[Follower],
        registry: RegistryClient,
        settings: Settings,
        guard: Authenticator | None = None,
    ) -> None:
        self._followers, self._registry, self._settings = followers, registry, settings
        self._guard = guard
        self._build = (__version__, metadata.version("mlflow"))

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        yield from self._service()
        yield from self._slots()
        yield from self._live()
        yield from self._candidates()
        yield from self._registry_metrics()

    def _service(self) -> Iterable[Metric]:
        build = GaugeMetricFamily(
            "serving_build_info", "Versions of the service and of MLflow.", labels=("version", "mlflow")
        )
        build.add_metric(self._build, 1)
        waiting = GaugeMetricFamily(
            "serving_waiting_requests_limit",
            "Maximum number of requests that wait for one version.",
            value=self._settings.max_queue_size,
        )
        memory = GaugeMetricFamily(
            "serving_process_memory_limit_bytes",
            "Memory limit above which a model process is replaced; absent if none is configured.",
            value=self._settings.max_process_bytes,
        )
        keys = GaugeMetricFamily(
            "serving_keys_readable",
            "1 if the API key file is readable; absent if none is configured.",
            value=self._guard.is_readable if self._guard else None,
        )
        return build, waiting, memory, keys

    def _slots(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily(
            "serving_model_ready",
            "1 if a version is live and one of its processes is up; /ready needs it for required models.",
            labels=(*_MODEL, "required"),
        )
        warnings = GaugeMetricFamily(
            "serving_model_warnings",
            "Number of warnings about a live version; see /ready.",
            labels=_MODEL,
        )
        writable = GaugeMetricFamily(
            "serving_model_tags_writable",
            "0 if the registry does not let the service write tags of the model; see /ready.",
            labels=_MODEL,
        )
        for slot in (follower.slot for follower in self._followers):
            model = (slot.reference.name, slot.reference.uri)
            ready.add_metric((*model, str(slot.required).lower()), slot.is_serving)
            warnings.add_metric(model, len(slot.all_warnings))
            writable.add_metric(model, slot.tag_warning is None)
        return ready, warnings, writable

    def _live(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "serving_model_info",
            "The live version of a reference.",
            labels=(*_MODEL, "version", "run_id", "model_id", "digest"),
        )
        loaded = GaugeMetricFamily(
            "serving_model_loaded_timestamp_seconds",
            "Time when the live version was loaded.",
            labels=(*_MODEL, "version"),
        )
        unverified = GaugeMetricFamily(
            "serving_model_unverified",
            "1 if the live version was not verified with an input example.",
            labels=(*_MODEL, "version"),
        )
        shared = GaugeMetricFamily(
            "serving_model_batching_shared",
            "1 if requests of different clients may share a model call.",
            labels=(*_MODEL, "version"),
        )
        for slot in (follower.slot for follower in self._followers):
            if live := slot.live:
                version = live.version
                labels = (slot.reference.name, slot.reference.uri, version.label)
                origin = (version.run_id or "", version.model_id or "", live.artifacts.digest)
                info.add_metric((*labels, *origin), 1)
                loaded.add_metric(labels, live.loaded_at.timestamp())
                unverified.add_metric(labels, bool(live.unverified))
                shared.add_metric(labels, live.calls.sharing.allowed)
        return info, loaded, unverified, shared

    def _candidates(self) -> Iterable[Metric]:
        candidates = GaugeMetricFamily(
            "serving_candidate_info",
            "A promoted version that is not live: loading, waiting, rejected or reverted.",
            labels=(*_MODEL, "version", "state"),
        )
        promotions = CounterMetricFamily(
            "serving_promotions_total",
            "Promotions by outcome: live, rejected or reverted; every attempt counts.",
            labels=(*_MODEL, "outcome"),
        )
        for follower in self._followers:
            model = (follower.slot.reference.name, follower.slot.reference.uri)
            if candidate := follower.candidate:
                candidates.add_metric((*model, candidate.version.label, candidate.state.value), 1)
            for outcome in _COUNTED_OUTCOMES:
                promotions.add_metric((*model, outcome), follower.history.outcomes[outcome])
        return candidates, promotions

    def _registry_metrics(self) -> Iterable[Metric]:
        reachable, checked_at = self._registry.reachable, self._registry.checked_at
        return (
            GaugeMetricFamily(
                "serving_registry_reachable",
                "1 if the last registry request succeeded; absent before the first request.",
                value=reachable,
            ),
            GaugeMetricFamily(
                "serving_registry_last_success_timestamp_seconds",
                "Time of the last successful registry request; fixed versions need none.",
                value=checked_at.timestamp() if checked_at else None,
            ),
            CounterMetricFamily(
                "serving_registry_failures_total",
                "Failed registry requests.",
                value=self._registry.failures,
            ),
        )
