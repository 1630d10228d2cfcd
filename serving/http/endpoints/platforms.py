"""Endpoints of managed platforms that no other protocol has: Azure ML's `/score`, and a health route."""

from __future__ import annotations

from fastapi import APIRouter

from serving.auth.access_rules import PROBE, requires
from serving.http.endpoints.invocations import InvocationsEndpoint
from serving.http.request_body import JSON
from serving.models.loaded_model import LoadedModel
from serving.models.selector import ModelSelector
from serving.protocols.azure_ml import parse
from serving.protocols.mlflow_scoring import ParsedRequest


class ScoreEndpoint(InvocationsEndpoint):
    """The endpoint `/score`: `/invocations` with `input_data`, as Azure ML's own MLflow server takes it."""

    protocol = "score"

    async def _parse(self, body: bytes, media_type: str, model: LoadedModel) -> ParsedRequest:
        if media_type == JSON:
            return parse(model.scoring, model.contract, body)
        return await super()._parse(body, media_type, model)


def health_router(models: ModelSelector, path: str) -> APIRouter:
    """Return the route that a platform probes: 200 when every required model is live."""
    routes = APIRouter(include_in_schema=False)

    @routes.get(path)
    @requires(PROBE)
    async def platform_health() -> dict[str, bool]:
        models.check_required()
        return {"ready": True}

    return routes
