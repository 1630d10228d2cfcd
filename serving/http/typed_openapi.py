"""The typed routes of each model in the OpenAPI document.

FastAPI generates the document from route declarations with the types of the live contracts. The requests
themselves bypass FastAPI (`endpoints/predict.py`).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query
from fastapi.routing import APIRoute

from serving.contract.contract import Contract
from serving.contract.params import Param
from serving.http.endpoints.predict_stream import ServerSentEvents
from serving.http.problem_details import PathText, documented
from serving.models.loaded_model import LoadedModel
from serving.protocols.tabular import ARROW

_ERRORS = documented(400, 404, 413, 415, 422, 500, 503, 504)


def typed_routes(default: LoadedModel | None, live: Mapping[str, LoadedModel]) -> list[APIRoute]:
    """Return declarations of the typed routes of live versions."""
    routes = list(_routes_for("", "", default.contract)) if default else []
    for name, loaded in live.items():
        prefix = f"/models/{quote(name)}"
        routes += _routes_for(prefix, f"_{name}", loaded.contract)
        routes += _routes_for(f"{prefix}/versions/{{version}}", f"_{name}", loaded.contract)
    return routes


def _routes_for(prefix: str, suffix: str, contract: Contract) -> Iterator[APIRoute]:
    tags: list[str | Enum] = [contract.name]
    pinned = "{version}" in prefix
    yield APIRoute(
        f"{prefix}/predict",
        _endpoint(contract.row, contract.params, pinned),
        methods=["POST"],
        response_model=contract.response,
        responses=_ERRORS,
        tags=tags,
        summary=f"Predict one row with {contract.name}",
        operation_id=f"{'pinned_' * pinned}predict{suffix}",
    )
    yield APIRoute(
        f"{prefix}/predict/batch",
        _endpoint(contract.batch, (), pinned),
        methods=["POST"],
        response_model=contract.batch_response,
        responses=_ERRORS,
        tags=tags,
        summary=f"Predict several rows with {contract.name}",
        operation_id=f"{'pinned_' * pinned}batch_predict{suffix}",
        # openapi-python-client writes a broken function for a required body of several media types.
        description=f"The body may also be a table: an Arrow stream, with the media type `{ARROW}`.",
    )
    if contract.streams:
        yield APIRoute(
            f"{prefix}/predict/stream",
            _endpoint(contract.row, contract.params, pinned),
            methods=["POST"],
            response_class=ServerSentEvents,
            responses=_ERRORS,
            tags=tags,
            summary=f"Predict one row with {contract.name}, as a stream",
            operation_id=f"{'pinned_' * pinned}stream_predict{suffix}",
        )


def _endpoint(body: Any, params: Sequence[Param], pinned: bool) -> Callable[..., None]:
    """Return a function with the signature of the route, from which FastAPI generates the documentation."""

    def declared() -> None:
        """Responses carry X-Model-Name, X-Model-Version, X-Request-ID and Server-Timing."""

    named = [_parameter("version", PathText)] if pinned else []
    # Model parameters may have names that are not Python identifiers.
    queries = [_query(f"param_{index}", param) for index, param in enumerate(params)]
    # FastAPI reads the parameters from this attribute.
    declared.__signature__ = inspect.Signature([*named, _parameter("body", body), *queries])  # type: ignore[attr-defined]
    return declared


def _query(name: str, param: Param) -> inspect.Parameter:
    if param.is_nested:  # the value is JSON in text; FastAPI would expand it into fields
        described = Query(alias=param.name, description="JSON", examples=[json.dumps(param.default)])
        return _parameter(name, Annotated[str | None, described], None)
    return _parameter(
        name, Annotated[param.annotation, Query(alias=param.name)], _json_default(param.default)
    )


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _json_default(default: Any) -> Any:
    """Return a default for the JSON schema; None for a number that JSON cannot represent."""
    return None if isinstance(default, float) and not math.isfinite(default) else default
