"""What the status page shows: what is live and what waits, with the traffic of the last half hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from operator import attrgetter

from fastapi import APIRouter
from pydantic import BaseModel, Field

from serving import __version__
from serving.auth.access_rules import ADMIN, requires
from serving.errors import not_served
from serving.http.problem_details import documented
from serving.http.readiness import ModelState, RegistryState, StatusContributor, readiness
from serving.observers.traffic_history import STEP_SECONDS, RecentTraffic, Series, TrafficHistory
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.history import HistoryEntry

_MAX_CHANGES = 8
_MAX_PERIODS = 50


class ModelStatus(ModelState):
    """What is live for one reference, and the traffic of all references to that model.

    Its drift by column is told where one model is asked for.
    """

    lately: RecentTraffic
    trend: list[float] = Field(
        description="requests a second in each half minute of the last half hour; empty if there were none"
    )
    series: Series | None = Field(None, description="that half hour in steps, where one model is asked for")
    history: list[HistoryEntry] | None = Field(
        None, description="the last events, where one model is asked for"
    )


@dataclass(frozen=True, slots=True)
class Change(HistoryEntry):
    """What became of a version, for one reference."""

    uri: str


class Status(BaseModel):
    """The service as its operators see it."""

    status: str = Field(description="ready, or not ready")
    service: str = Field(description="the version of the service")
    started_at: datetime
    now: datetime
    ticks: int = Field(description="looks at the traffic so far: its figures change with it")
    step_seconds: float = STEP_SECONDS
    registry: RegistryState
    lately: RecentTraffic = Field(description="all models together, and what reached none")
    trend: list[float]
    changes: list[Change] = Field(description="what became of versions lately, the newest first")
    models: list[ModelStatus]


def router(
    followers: Sequence[Follower],
    registry: RegistryClient,
    timeline: TrafficHistory,
    tellers: Sequence[StatusContributor] = (),
) -> APIRouter:
    """The route of the status page's figures."""
    routes = APIRouter(tags=["operations"])
    started_at = datetime.now(UTC)

    @routes.get(
        "/status",
        summary="What is live, what waits, and the traffic of the last half hour",
        responses=documented(404),
    )
    @requires(ADMIN)
    async def status(model: str | None = None) -> Status:
        found = readiness(followers, registry, tellers)
        shown = [*zip(found.models, followers, strict=True)]
        if model is not None and not (shown := [each for each in shown if each[0].name == model]):
            raise not_served(model)
        lately, trend = timeline.lately()
        return Status(
            status=found.status,
            service=__version__,
            started_at=started_at,
            now=datetime.now(UTC),
            ticks=timeline.ticks,
            registry=found.registry,
            lately=lately,
            trend=trend,
            changes=_changes(followers),
            models=[_told(*each, timeline, in_full=model is not None) for each in shown],
        )

    return routes


def _told(state: ModelState, follower: Follower, timeline: TrafficHistory, *, in_full: bool) -> ModelStatus:
    lately, trend = timeline.lately(state.name)
    told = ModelStatus(**dict(state), lately=lately, trend=trend)
    if in_full:
        told.series, told.history = timeline.series(state.name), follower.history.periods(_MAX_PERIODS)
    else:
        told.drift = None  # so many columns of so many models; what has drifted stands in the warnings
    return told


def _changes(followers: Sequence[Follower]) -> list[Change]:
    found = [
        Change(**asdict(period), uri=follower.slot.reference.uri)
        for follower in followers
        for period in follower.history.periods(_MAX_CHANGES)
    ]
    return sorted(found, key=attrgetter("since"), reverse=True)[:_MAX_CHANGES]
