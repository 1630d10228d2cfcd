"""What operators and data scientists ask: is it alive, is it ready, what is live, with which contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from typing import Any, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field, TypeAdapter

from serving.errors import UnknownModel
from serving.http.components import ComponentState, component_states
from serving.http.problems import documented
from serving.http.replicas import Fleet, ReplicaState, agree
from serving.journal.quality import QualityState
from serving.monitoring.drift import DriftState
from serving.monitoring.trials import CanaryState, ShadowState
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.history import Period
from serving.registry.plan import Candidate
from serving.runtime.contract import Contract
from serving.runtime.loaded import Loaded
from serving.runtime.slot import RECOVERING, Slot
from serving.runtime.supervision import Supervisor
from serving.telemetry.merged import Merged
from serving.telemetry.metrics import Metrics


class Health(BaseModel):
    """The process lives; this says nothing about models."""

    status: str = "ok"


class CandidateState(BaseModel):
    """The version that the reference names while it is not live."""

    version: str | None
    state: str = Field(description="loading, waiting (it is tried again), rejected or reverted")
    reason: str


class ComparisonState(BaseModel):
    """How a version answered requests that another had answered."""

    requests: int
    agreement: float = Field(description="share of rows with the same answer, numbers within one percent")
    latency: float = Field(description="its median time as a ratio to the other version's")


class BatchingState(BaseModel):
    """Whether requests of different callers may share a call of the model."""

    shared: bool
    basis: str = Field(description="proof, monitoring, metadata or output form")
    reason: str


class ModelState(BaseModel):
    """What is live for one reference."""

    name: str
    uri: str
    version: str | None = None
    stage: str | None = None
    aliases: list[str] = []
    run_id: str | None = None
    model_id: str | None = None
    source: str | None = None
    digest: str | None = None
    loaded_at: datetime | None = None
    required: bool = Field(description="whether the service is not ready without it")
    state: str = Field(description="live, recovering, not live, or (on demand) asleep or waking")
    reason: str | None = Field(None, description="why it is not live")
    candidate: CandidateState | None = None
    comparison: ComparisonState | None = Field(
        None, description="how it answered the last requests of the version that was live before"
    )
    batching: BatchingState | None = Field(None, description="whether callers share calls of the model")
    canary: CanaryState | None = Field(None, description="of references that share a model by weight")
    shadow: ShadowState | None = Field(None, description="of a reference that is a shadow")
    drift: list[DriftState] | None = Field(
        None, description="the columns that have drifted most; null without a profile or before enough rows"
    )
    quality: QualityState | None = Field(None, description="by the feedback that came; null without")
    warnings: list[str] = []


class RegistryState(BaseModel):
    """What the last look at the registry came to."""

    uri: str
    reachable: bool | None = Field(description="null before the first look")
    checked_at: datetime | None = Field(description="when a look last succeeded")


class Readiness(BaseModel):
    """Whether every required model is live, and which version of it."""

    status: str = Field(description="ready, or not ready")
    model_uri: str = Field(description="the default model's reference")
    model_version: str | None = Field(description="the default model's live version")
    models: list[ModelState]
    registry: RegistryState
    components: list[ComponentState] = Field(
        default=[],
        exclude_if=lambda found: not found,
        description="background components that ended unexpectedly a short time ago; absent if none did",
    )


class FleetReadiness(Readiness):
    """The same of a replica, and which versions all replicas have."""

    replicas: list[ReplicaState]
    replicas_agree: bool = Field(description="whether every replica has every required model in one version")


class ContractDescription(BaseModel):
    """The types of a live version's endpoints, as JSON Schema."""

    row: dict[str, Any]
    params: dict[str, Any] | None
    streams: bool = Field(description="whether it answers bit by bit too")
    prediction: dict[str, Any]


class ModelDescription(ModelState):
    """What is live for one reference, and its contract."""

    contract: ContractDescription | None = None


class Models(BaseModel):
    """Everything that is served."""

    models: list[ModelDescription]


Teller: TypeAlias = Callable[[Slot], Mapping[str, Any]]
"""Tells fields of a reference's `ModelState` that others know."""


def router(
    followers: Sequence[Follower],
    registry: RegistryClient,
    metrics: Metrics,
    tellers: Sequence[Teller],
    probe_tellers: Sequence[Teller],
    fleet: Fleet | None = None,
    supervisor: Supervisor | None = None,
) -> APIRouter:
    """The routes of operators; `probe_tellers` tell what `/ready` says, for which nobody needs a key.

    Those of one replica of a fleet tell of the others too.
    """
    routes = APIRouter(tags=["operations"])
    told = FleetReadiness if fleet else Readiness

    @routes.get("/health", summary="Does the process live?")
    @routes.get("/livez", include_in_schema=False)
    async def health() -> Health:
        return Health()

    @routes.get(
        "/ready",
        summary="Is every model live, and in which version?",
        response_model=told,
        responses={503: {"model": told}},
    )
    @routes.get("/readyz", response_model=told, include_in_schema=False)
    async def ready(response: Response) -> Readiness:
        found = readiness(followers, registry, probe_tellers)
        found.components = component_states(supervisor) if supervisor else []
        if fleet:
            found = await _with_fleet(found, fleet)
        response.status_code = 200 if found.status == "ready" else 503
        if response.status_code == 503:
            response.headers["Retry-After"] = "1"
        return found

    @routes.get(
        "/ping",
        summary="Does the default model answer? As MLflow's server has it",
        response_class=PlainTextResponse,
        responses=documented(503),
    )
    async def ping() -> PlainTextResponse:
        followers[0].slot.check_serving()
        return PlainTextResponse("\n")

    @routes.get("/version", summary="The version of MLflow", response_class=PlainTextResponse)
    async def version() -> PlainTextResponse:
        return PlainTextResponse(metadata.version("mlflow"))

    @routes.get("/metrics", summary="What was counted and timed, for Prometheus", response_class=Response)
    async def measured(request: Request) -> Response:
        render, media_type = choose_encoder(request.headers.get("accept", ""))
        collected: Any = Merged(await fleet.measure()) if fleet else metrics.registry
        return Response(await asyncio.to_thread(render, collected), media_type=media_type)

    @routes.get("/models", summary="What is served, with each contract")
    async def models() -> Models:
        return Models(models=[_description(follower, tellers) for follower in followers])

    @routes.get("/models/{name}", summary="One model, with its contract", responses=documented(404))
    async def model(name: str) -> ModelDescription:
        for follower in followers:
            if follower.slot.reference.name == name:
                return _description(follower, tellers)
        raise UnknownModel(f"No model {name[:100]!r} is served here.")

    @routes.get(
        "/models/{name}/history",
        summary="What was live from when to when, refused or reverted, and why",
        responses=documented(404),
    )
    async def history(name: str) -> list[Period]:
        for follower in followers:
            if follower.slot.reference.name == name:
                return follower.history.periods()
        raise UnknownModel(f"No model {name[:100]!r} is served here.")

    return routes


def readiness(
    followers: Sequence[Follower], registry: RegistryClient, tellers: Sequence[Teller]
) -> Readiness:
    """What `/ready` answers."""
    models = [ModelState(**_state(follower, tellers)) for follower in followers]
    is_ready = all(follower.slot.is_serving for follower in followers if follower.slot.required)
    return Readiness(
        status="ready" if is_ready else "not ready",
        model_uri=models[0].uri,
        model_version=models[0].version,
        models=models,
        registry=RegistryState(
            uri=registry.uri, reachable=registry.reachable, checked_at=registry.checked_at
        ),
    )


async def _with_fleet(own: Readiness, fleet: Fleet) -> FleetReadiness:
    seen = await fleet.look()
    required = [model.uri for model in own.models if model.required]
    return FleetReadiness(**dict(own), replicas=[*seen.replicas], replicas_agree=agree(seen, required))


def describe(contract: Contract) -> ContractDescription:
    """A contract as JSON Schema."""
    return ContractDescription(
        row=TypeAdapter(contract.row).json_schema(),
        params=TypeAdapter(contract.params_type).json_schema() if contract.params else None,
        streams=contract.streams,
        prediction=TypeAdapter(contract.prediction).json_schema(),
    )


def _description(follower: Follower, tellers: Sequence[Teller]) -> ModelDescription:
    live = follower.slot.live
    return ModelDescription(**_state(follower, tellers), contract=describe(live.contract) if live else None)


def _state(follower: Follower, tellers: Sequence[Teller]) -> dict[str, Any]:
    slot = follower.slot
    state: dict[str, Any] = {
        "name": slot.reference.name,
        "uri": slot.reference.uri,
        "required": slot.required,
        "state": slot.state,
        "candidate": _candidate(follower.candidate),
    }
    state |= _facts(slot.live) if slot.live else {"reason": slot.reason}
    if slot.live and not slot.is_serving:
        state["reason"] = RECOVERING
    warnings = [*slot.warnings, *state.get("warnings", [])]
    for teller in tellers:
        told = teller(slot)
        state |= told
        warnings += told.get("warnings", ())
    return state | {"warnings": warnings}


def _facts(live: Loaded) -> dict[str, Any]:
    version = live.version
    return {
        "version": version.version,
        "stage": version.stage,
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        "model_id": version.model_id,
        "source": version.source,
        "digest": live.artifacts.digest,
        "loaded_at": live.loaded_at,
        "warnings": live.warnings,
        "batching": live.calls.sharing.as_json(),
        "comparison": asdict(live.comparison) if live.comparison else None,
    }


def _candidate(candidate: Candidate | None) -> CandidateState | None:
    if candidate is None:
        return None
    return CandidateState(
        version=candidate.version.version, state=candidate.state.value, reason=candidate.reason
    )
