"""`GET /status`: the data of the status page, with the traffic of the last half hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Protocol

from fastapi import APIRouter
from pydantic import BaseModel, Field, create_model

from serving import __version__
from serving.auth.access_rules import ADMIN, requires
from serving.errors import not_served
from serving.http.component_status import ComponentState, component_states
from serving.http.mlflow_links import MlflowLinks, MlflowUi
from serving.http.problem_details import documented
from serving.http.readiness import RegistryState, StatusReporter
from serving.registry.follower import Follower
from serving.registry.history import HistoryEntry
from serving.supervision import Supervisor

STEP_SECONDS = 5.0
_MAX_CHANGES = 8
_MAX_PERIODS = 50


class WarningGroup(BaseModel):
    """Warnings of `ModelState.warnings` that one feature reports, such as drift."""

    kind: str
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class RecentTraffic:
    """The last minute: requests per second, latency in seconds, rows per call of the model.

    The latency is that of successful requests, interpolated within the buckets of the Prometheus histogram:
    the error is at most the width of a bucket.
    """

    requests: float
    refused: float
    """Requests per second with a status of 4xx, which includes clients that disconnected."""
    failed: float
    """Requests per second with a status of 5xx."""
    p50: float | None
    p99: float | None
    rows: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """The values of `RecentTraffic` for each step of the last half hour, the oldest first.

    `times` are the ends of the steps, in Unix time.
    """

    times: list[float]
    requests: list[float]
    refused: list[float]
    failed: list[float]
    p50: list[float | None]
    p99: list[float | None]
    rows: list[float | None]


class TrafficSource(Protocol):
    """Holds the traffic of the last half hour by model; None stands for all models."""

    ticks: int

    def recent(self, model: str | None = None) -> tuple[RecentTraffic, list[float]]:
        """Return the last minute, and the requests per second in each half minute."""
        ...

    def series(self, model: str) -> Series:
        """Return each step of the last half hour."""
        ...


class TrafficFields(BaseModel):
    """The traffic of all references to a model; it extends the model's state."""

    lately: RecentTraffic
    trend: list[float] = Field(
        description="requests per second in each half minute of the last half hour; empty without requests"
    )
    links: MlflowLinks = MlflowLinks()
    warning_groups: list[WarningGroup] = Field(
        [], description="the warnings that features report, by feature"
    )
    series: Series | None = Field(None, description="that half hour in steps; for a single model only")
    history: list[HistoryEntry] | None = Field(None, description="the last events; for a single model only")


@dataclass(frozen=True, slots=True)
class Change(HistoryEntry):
    """The outcome of a version, for one reference."""

    uri: str


class Status(BaseModel):
    """State of the service for its operators."""

    status: str = Field(description="ready, or not ready")
    service: str = Field(description="the version of the service")
    started_at: datetime
    now: datetime
    ticks: int = Field(description="number of updates of the traffic; its numbers change only with this one")
    step_seconds: float = STEP_SECONDS
    registry: RegistryState
    components: list[ComponentState] = Field(description="as in /ready")
    keys: str | None = Field(description="as in /ready; null without keys")
    lately: RecentTraffic = Field(description="all models together, and the requests that reached no model")
    trend: list[float]
    changes: list[Change] = Field(description="the last outcomes of versions, the newest first")
    models: list[TrafficFields]


def router(
    reporter: StatusReporter, traffic: TrafficSource, ui: MlflowUi, supervisor: Supervisor
) -> APIRouter:
    """Return the route of the status page's data."""
    routes = APIRouter(tags=["operations"])
    started_at = datetime.now(UTC)
    model_type = create_model(
        "ModelStatus",
        __base__=(TrafficFields, reporter.model_state),
        __doc__="What is live for one reference, and the traffic of all references to that model.\n\n"
        "Drift by column is included only in the status of a single model.",
    )
    status_type = create_model(
        "Status",
        __base__=Status,
        __doc__=Status.__doc__,
        models=(list[model_type], ...),
    )

    @routes.get(
        "/status",
        summary="Live and waiting versions, and the traffic of the last half hour",
        response_model=status_type,
        responses=documented(404),
    )
    @requires(ADMIN)
    async def status(model: str | None = None) -> Status:
        state = reporter.readiness()
        pairs = [*zip(state.models, reporter.followers, strict=True)]
        if model is not None and not (pairs := [pair for pair in pairs if pair[0].name == model]):
            raise not_served(model)
        lately, trend = traffic.recent()
        return status_type(
            status=state.status,
            service=__version__,
            started_at=started_at,
            now=datetime.now(UTC),
            ticks=traffic.ticks,
            registry=state.registry,
            components=component_states(supervisor),
            keys=state.keys,
            lately=lately,
            trend=trend,
            changes=_changes(reporter.followers),
            models=[
                model_type(**dict(model_state) | fields(follower, in_full=model is not None))
                for model_state, follower in pairs
            ],
        )

    def fields(follower: Follower, *, in_full: bool) -> dict[str, Any]:
        """Return the fields that the status page adds to the state of a reference, or replaces in it."""
        name = follower.slot.reference.name
        lately, trend = traffic.recent(name)
        added: dict[str, Any] = {"lately": lately, "trend": trend}
        if not in_full:
            # Drift by column of all models would be too large; the warnings name the columns that drifted.
            return added | {"drift": None}
        live = follower.slot.live
        groups = reporter.warnings_by_feature(follower)
        return added | {
            "links": ui.links(live.version) if live else MlflowLinks(),
            "warning_groups": [
                WarningGroup(kind=kind, warnings=warnings) for kind, warnings in groups.items()
            ],
            "series": traffic.series(name),
            "history": follower.history.periods(_MAX_PERIODS),
        }

    return routes


def _changes(followers: Sequence[Follower]) -> list[Change]:
    changes = [
        Change(**asdict(period), uri=follower.slot.reference.uri)
        for follower in followers
        for period in follower.history.periods(_MAX_CHANGES)
    ]
    return sorted(changes, key=attrgetter("since"), reverse=True)[:_MAX_CHANGES]
