"""Registers tracing, the access log, the traffic history and the metrics of the service's state."""

from __future__ import annotations

from serving.feature_interface import Core, Feature, Task
from serving.http.endpoints import status_data
from serving.http.mlflow_links import MlflowUi
from serving.observers import tracing
from serving.observers.access_log import AccessLog
from serving.observers.state_collector import StateCollector
from serving.observers.traffic_history import TrafficHistory


def create(core: Core) -> list[Feature]:
    """Return the features, tracing first: its trace id is in the log lines of the others.

    Raises:
        TracingConfigError: The environment turns on tracing that this service cannot do.
    """
    settings = core.settings
    access, history = AccessLog(settings.access_log), TrafficHistory(core.metrics)
    ui = MlflowUi.of(settings)
    return [
        *tracing.features(),
        Feature(hooks=[access] if access.share else (), on_finished=access.ended),
        Feature(
            tasks=[Task("traffic history", history.run)],
            routes=lambda reporter: status_data.router(reporter, history, ui, core.supervisor),
        ),
        Feature(collectors=[StateCollector(core.followers, core.registry, settings, core.guard)]),
    ]
