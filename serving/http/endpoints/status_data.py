"""Data of the status page: live and waiting versions, warnings, and the traffic of the last half hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from operator import attrgetter

from fastapi import APIRouter
from pydantic import BaseModel, Field

from serving import __version__
from serving.auth.access_rules import ADMIN, requires
from serving.auth.authenticator import Authenticator
from serving.errors import not_served
from serving.http.component_status import ComponentState, component_states
from serving.http.mlflow_links import MlflowLinks, MlflowUi
from serving.http.problem_details import documented
from serving.http.readiness import ModelState, RegistryState, StatusContributor, readiness
from serving.models.slot import Slot
from serving.observers.traffic_history import STEP_SECONDS, RecentTraffic, Series, TrafficHistory
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.history import HistoryEntry
from serving.supervision import Supervisor

_MAX_CHANGES = 8
_MAX_PERIODS = 50


class WarningGroup(BaseModel):
    """Warnings of `ModelState.warnings` that one feature reports, such as drift."""

    kind: str
    warnings: list[str]


class ModelStatus(ModelState):
    """State of one reference, and the traffic of all references to its model.

    Drift by column is included only in the status of a single model.
    """

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
    models: list[ModelStatus]


def router(
    followers: Sequence[Follower],
    registry: RegistryClient,
    timeline: TrafficHistory,
    ui: MlflowUi,
    tellers: Sequence[StatusContributor] = (),
    guard: Authenticator | None = None,
    supervisor: Supervisor | None = None,
) -> APIRouter:
    """Return the route of the status page's data."""
    routes = APIRouter(tags=["operations"])
    started_at = datetime.now(UTC)

    @routes.get(
        "/status",
        summary="Live and waiting versions, and the traffic of the last half hour",
        responses=documented(404),
    )
    @requires(ADMIN)
    async def status(model: str | None = None) -> Status:
        state = readiness(followers, registry, tellers, guard)
        pairs = [*zip(state.models, followers, strict=True)]
        if model is not None and not (pairs := [pair for pair in pairs if pair[0].name == model]):
            raise not_served(model)
        lately, trend = timeline.lately()
        return Status(
            status=state.status,
            service=__version__,
            started_at=started_at,
            now=datetime.now(UTC),
            ticks=timeline.ticks,
            registry=state.registry,
            components=component_states(supervisor) if supervisor else [],
            keys=state.keys,
            lately=lately,
            trend=trend,
            changes=_changes(followers),
            models=[_model_status(*pair, in_full=model is not None) for pair in pairs],
        )

    def _model_status(state: ModelState, follower: Follower, *, in_full: bool) -> ModelStatus:
        lately, trend = timeline.lately(state.name)
        shown = ModelStatus(**dict(state), lately=lately, trend=trend)
        if not in_full:
            shown.drift = None  # many columns of many models; the warnings name those that have drifted
            return shown
        live = follower.slot.live
        shown.links = ui.links(live.version) if live else MlflowLinks()
        shown.warning_groups = _warning_groups(follower.slot, tellers)
        shown.series, shown.history = timeline.series(state.name), follower.history.periods(_MAX_PERIODS)
        return shown

    return routes


def _warning_groups(slot: Slot, tellers: Sequence[StatusContributor]) -> list[WarningGroup]:
    groups = []
    for teller in tellers:
        fields = teller(slot)
        if warnings := fields.get("warnings"):
            kind = next(name for name in fields if name != "warnings")
            groups.append(WarningGroup(kind=kind, warnings=warnings))
    return groups


def _changes(followers: Sequence[Follower]) -> list[Change]:
    changes = [
        Change(**asdict(period), uri=follower.slot.reference.uri)
        for follower in followers
        for period in follower.history.periods(_MAX_CHANGES)
    ]
    return sorted(changes, key=attrgetter("since"), reverse=True)[:_MAX_CHANGES]
