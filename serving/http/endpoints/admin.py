"""Endpoints for operators and data scientists: liveness, readiness, metrics, and models with contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field, create_model

from serving.auth.access_rules import ADMIN, ADMIN_OF_MODEL, GENERAL, PREDICT, PROBE, requires
from serving.auth.authenticator import Authenticator
from serving.cluster import Cluster, InstanceState, is_consistent
from serving.contract.contract import Contract
from serving.errors import not_served
from serving.http.component_status import component_states
from serving.http.model_visibility import (
    check_visible,
    sees_reasons,
    sees_registry,
    visible_followers,
    without_address,
)
from serving.http.problem_details import PathText, documented
from serving.http.readiness import Readiness, StatusReporter
from serving.registry.follower import Follower
from serving.registry.history import HistoryEntry
from serving.supervision import Supervisor
from serving.telemetry.metrics import Metrics
from serving.telemetry.multi_front_collector import MultiInstanceCollector


class Health(BaseModel):
    """The liveness of the process, which does not depend on models."""

    status: str = "ok"


class ClusterFields(BaseModel):
    """The fields of `/ready` that only an instance of a cluster has."""

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


def router(
    reporter: StatusReporter,
    metrics: Metrics,
    guard: Authenticator | None = None,
    fleet: Cluster | None = None,
    supervisor: Supervisor | None = None,
) -> APIRouter:
    """Return the routes for operators; an instance of a cluster reports the other instances too."""
    routes = APIRouter(tags=["operations"])
    followers = reporter.followers
    readiness_type = _cluster_readiness(reporter) if fleet else reporter.readiness_type
    description = create_model(
        "ModelDescription",
        __base__=reporter.model_state,
        __doc__="What is live for one reference, and its contract.",
        contract=(ContractDescription | None, None),
    )
    descriptions = create_model(
        "Models",
        __doc__="Everything that is served.",
        models=(list[description], ...),
    )

    @routes.get("/health", summary="Liveness of the process")
    @routes.get("/livez", include_in_schema=False)
    @requires(PROBE)
    async def health() -> Health:
        return Health()

    @routes.get(
        "/ready",
        summary="Is every model live, and in which version?",
        response_model=readiness_type,
        responses={503: {"model": readiness_type}},
    )
    @routes.get("/readyz", response_model=readiness_type, include_in_schema=False)
    @requires(PROBE)
    async def ready(request: Request, response: Response) -> Readiness:
        found = reporter.readiness(in_full=sees_reasons(request.scope), public=guard is not None)
        if not sees_registry(request.scope):
            found.registry.uri = None
            for state in found.models:
                state.source = without_address(state.source)
        found.components = component_states(supervisor) if supervisor else []
        if fleet:
            found = await _with_cluster(found, fleet, readiness_type)
        response.status_code = 200 if found.status == "ready" else 503
        if response.status_code == 503:
            response.headers["Retry-After"] = "1"
        return found

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
        collected: Any = MultiInstanceCollector(await fleet.collect_metrics()) if fleet else metrics.registry
        return Response(await asyncio.to_thread(render, collected), media_type=media_type)

    @routes.get("/models", summary="What is served, with each contract", response_model=descriptions)
    @requires(PREDICT)
    async def models(request: Request) -> BaseModel:
        return descriptions(models=await _described(visible_followers(followers, request.scope), request))

    @routes.get(
        "/models/{name}",
        summary="One model, with its contract",
        response_model=description,
        responses=documented(400, 404),
    )
    @requires(PREDICT)
    async def model(name: PathText, request: Request) -> BaseModel:
        (described,) = await _described([_named(name, request)], request)
        return described

    @routes.get(
        "/models/{name}/history",
        summary="History of live, rejected and reverted versions",
        responses=documented(400, 404),
    )
    @requires(ADMIN_OF_MODEL)
    async def history(name: PathText, request: Request) -> list[HistoryEntry]:
        return _named(name, request).history.periods()

    async def _described(shown: Sequence[Follower], request: Request) -> list[BaseModel]:
        contracts = [follower.slot.live.contract for follower in shown if follower.slot.live]
        if new := [contract for contract in contracts if "json_schemas" not in vars(contract)]:
            await asyncio.to_thread(lambda: [contract.json_schemas for contract in new])
        in_full = sees_reasons(request.scope)
        described: list[Any] = [
            description(**reporter.state(follower, in_full=in_full), contract=_contract_of(follower))
            for follower in shown
        ]
        if not sees_registry(request.scope):
            for state in described:
                state.source = without_address(state.source)
        return described

    def _named(name: str, request: Request) -> Follower:
        for follower in visible_followers(followers, request.scope):
            if follower.slot.reference.name == name:
                return follower
        raise not_served(name)

    return routes


def _cluster_readiness(reporter: StatusReporter) -> type[Readiness]:
    bases: tuple[type[Any], ...] = (ClusterFields, reporter.readiness_type)
    doc = "The readiness of one instance, and the versions that all instances have."
    return create_model("FleetReadiness", __base__=bases, __doc__=doc)


async def _with_cluster(own: Readiness, fleet: Cluster, readiness_type: type[Readiness]) -> Readiness:
    view = await fleet.view()
    required = [model.uri for model in own.models if model.required]
    fields = {"replicas": [*view.instances], "replicas_agree": is_consistent(view, required)}
    return readiness_type(**vars(own) | fields)


def contract_schema(contract: Contract) -> ContractDescription:
    """Return the JSON Schemas of a contract."""
    schemas = contract.json_schemas
    return ContractDescription(
        row=schemas["row"],
        params=schemas.get("params"),
        streams=contract.streams,
        prediction=schemas["prediction"],
    )


def _contract_of(follower: Follower) -> ContractDescription | None:
    live = follower.slot.live
    return contract_schema(live.contract) if live else None
