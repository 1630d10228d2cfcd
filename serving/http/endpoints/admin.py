"""Endpoints for operators and data scientists: liveness, readiness, metrics, and models with contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field

from serving.auth.access_rules import ADMIN, ADMIN_OF_MODEL, GENERAL, PREDICT, PROBE, requires
from serving.auth.authenticator import Authenticator
from serving.cluster import Cluster, InstanceState, is_consistent
from serving.contract.contract import Contract
from serving.errors import not_served
from serving.http.component_status import component_states
from serving.http.model_visibility import check_visible, sees_reasons, visible_followers
from serving.http.problem_details import PathText, documented
from serving.http.readiness import ModelState, Readiness, StatusContributor, readiness, state_of
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.history import HistoryEntry
from serving.supervision import Supervisor
from serving.telemetry.metrics import Metrics
from serving.telemetry.multi_front_collector import MultiInstanceCollector


class Health(BaseModel):
    """The liveness of the process, which does not depend on models."""

    status: str = "ok"


class FleetReadiness(Readiness):
    """The readiness of one instance of a cluster, and the versions of all instances."""

    replicas: list[InstanceState]
    replicas_agree: bool = Field(
        description="whether all instances have the same version of every required model"
    )


class ContractDescription(BaseModel):
    """The types of a live version's endpoints, as JSON Schema."""

    row: dict[str, Any]
    params: dict[str, Any] | None
    streams: bool = Field(description="whether predictions can be streamed")
    prediction: dict[str, Any]


class ModelDescription(ModelState):
    """The live version of one reference, and its contract."""

    contract: ContractDescription | None = None


class Models(BaseModel):
    """All served models."""

    models: list[ModelDescription]


def router(
    followers: Sequence[Follower],
    registry: RegistryClient,
    metrics: Metrics,
    contributors: Sequence[StatusContributor],
    public_contributors: Sequence[StatusContributor],
    guard: Authenticator | None = None,
    fleet: Cluster | None = None,
    supervisor: Supervisor | None = None,
) -> APIRouter:
    """Return the admin routes.

    Args:
        followers: the followers of all references, the default model's first.
        registry: the connection to the registry.
        metrics: the metrics of this front.
        contributors: return the features' fields of a reference.
        public_contributors: the same for `/ready`, which requires no API key.
        guard: checks API keys, if they are enabled.
        fleet: the other instances on Ray, whose state the routes include.
        supervisor: the background components.
    """
    routes = APIRouter(tags=["operations"])
    body = FleetReadiness if fleet else Readiness

    @routes.get("/health", summary="Liveness of the process")
    @routes.get("/livez", include_in_schema=False)
    @requires(PROBE)
    async def health() -> Health:
        return Health()

    @routes.get(
        "/ready",
        summary="Readiness of the service, and the live version of each model",
        response_model=body,
        responses={503: {"model": body}},
    )
    @routes.get("/readyz", response_model=body, include_in_schema=False)
    @requires(PROBE)
    async def ready(request: Request, response: Response) -> Readiness:
        state = readiness(
            followers, registry, public_contributors, guard, in_full=sees_reasons(request.scope)
        )
        state.components = component_states(supervisor) if supervisor else []
        if fleet:
            state = await _with_fleet(state, fleet)
        response.status_code = 200 if state.status == "ready" else 503
        if response.status_code == 503:
            response.headers["Retry-After"] = "1"
        return state

    @routes.get(
        "/ping",
        summary="Readiness of the default model, as MLflow's server reports it",
        response_class=PlainTextResponse,
        responses=documented(503),
    )
    @requires(PREDICT)
    async def ping(request: Request) -> PlainTextResponse:
        check_visible(request.scope, followers[0].slot.reference.name)
        followers[0].slot.check_serving()
        return PlainTextResponse("\n")

    @routes.get("/version", summary="Version of MLflow", response_class=PlainTextResponse)
    @requires(GENERAL)
    async def version() -> PlainTextResponse:
        return PlainTextResponse(metadata.version("mlflow"))

    @routes.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    @requires(ADMIN)
    async def measured(request: Request) -> Response:
        render, media_type = choose_encoder(request.headers.get("accept", ""))
        collected: Any = MultiInstanceCollector(await fleet.measure()) if fleet else metrics.registry
        return Response(await asyncio.to_thread(render, collected), media_type=media_type)

    @routes.get("/models", summary="All models and their contracts")
    @requires(PREDICT)
    async def models(request: Request) -> Models:
        return Models(models=await _describe(visible_followers(followers, request.scope), request))

    @routes.get("/models/{name}", summary="One model and its contract", responses=documented(400, 404))
    @requires(PREDICT)
    async def model(name: PathText, request: Request) -> ModelDescription:
        (description,) = await _describe([_named(name, request)], request)
        return description

    @routes.get(
        "/models/{name}/history",
        summary="History of live, rejected and reverted versions",
        responses=documented(400, 404),
    )
    @requires(ADMIN_OF_MODEL)
    async def history(name: PathText, request: Request) -> list[HistoryEntry]:
        return _named(name, request).history.periods()

    async def _describe(shown: Sequence[Follower], request: Request) -> list[ModelDescription]:
        contracts = [follower.slot.live.contract for follower in shown if follower.slot.live]
        if new := [contract for contract in contracts if "json_schemas" not in vars(contract)]:
            await asyncio.to_thread(lambda: [contract.json_schemas for contract in new])
        in_full = sees_reasons(request.scope)
        return [_description(follower, contributors, in_full=in_full) for follower in shown]

    def _named(name: str, request: Request) -> Follower:
        for follower in visible_followers(followers, request.scope):
            if follower.slot.reference.name == name:
                return follower
        raise not_served(name)

    return routes


async def _with_fleet(own: Readiness, fleet: Cluster) -> FleetReadiness:
    seen = await fleet.look()
    required = [model.uri for model in own.models if model.required]
    return FleetReadiness(
        **vars(own), replicas=[*seen.replicas], replicas_agree=is_consistent(seen, required)
    )


def contract_schema(contract: Contract) -> ContractDescription:
    """Return the JSON Schemas of a contract."""
    schemas = contract.json_schemas
    return ContractDescription(
        row=schemas["row"],
        params=schemas.get("params"),
        streams=contract.streams,
        prediction=schemas["prediction"],
    )


def _description(
    follower: Follower, contributors: Sequence[StatusContributor], *, in_full: bool
) -> ModelDescription:
    live, state = follower.slot.live, state_of(follower, contributors, in_full=in_full)
    return ModelDescription(**state, contract=contract_schema(live.contract) if live else None)
