"""`POST /feedback`: the true outcome of an earlier prediction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Protocol
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import PydanticCustomError, from_json

from serving.auth.access_rules import PREDICT, requires
from serving.errors import FieldError, JournalUnavailable, Malformed, UnknownPrediction, Unprocessable
from serving.http.http_context import context_of
from serving.http.problem_details import documented
from serving.http.request_body import read_json
from serving.settings.groups import LimitSettings

_MAX_ITEMS = 10_000
_MAX_FIELD_ERRORS = 20


class Feedback(BaseModel):
    """The true outcome for one row of a prediction."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: UUID = Field(description="the header X-Prediction-ID of the response")
    outcome: Any = Field(
        description="a class or its number, a number, or a value in the shape of the prediction"
    )
    row: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = Field(
        0, description="index of the row in the request, from 0"
    )

    @field_validator("outcome")
    @classmethod
    def _is_storable(cls, outcome: Any) -> Any:
        with suppress(TypeError):  # an integer of more than 64 bits
            if orjson.loads(orjson.dumps(outcome)) == outcome:
                return outcome
        raise PydanticCustomError("outcome", "Input should have finite numbers only, of 64 bits")


class FeedbackBatch(BaseModel):
    """Several outcomes; either all of them are recorded or none."""

    model_config = ConfigDict(extra="forbid")

    feedback: Annotated[list[Feedback], Field(min_length=1, max_length=_MAX_ITEMS)]


class FeedbackAccepted(BaseModel):
    """The response to recorded feedback."""

    recorded: int = Field(description="number of outcomes")


_SCHEMA = TypeAdapter(Feedback | FeedbackBatch).json_schema(ref_template="#/components/schemas/{model}")
SCHEMAS: dict[str, Any] = _SCHEMA.pop("$defs")
"""The schemas that the documentation of the route refers to."""


class FeedbackStore(Protocol):
    """Stores the outcomes of earlier predictions."""

    async def record_feedback(self, feedback: Sequence[Any], models: Sequence[str] | None) -> dict[str, Any]:
        """Store outcomes; return `recorded`, or what `unknown`, `misfits` or `refused` kept it from that.

        Raises:
            JournalUnavailable: The store does not respond.
        """
        ...


def router(journal: FeedbackStore | None, limits: LimitSettings) -> APIRouter:
    """Return the route of feedback."""
    routes = APIRouter(tags=["feedback"])
    content = {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}

    @routes.post(
        "/feedback",
        summary="Record the true outcome of an earlier prediction, or correct it",
        responses=documented(400, 404, 413, 415, 422, 503),
        openapi_extra={"requestBody": content},
    )
    @requires(PREDICT)
    async def record_feedback(request: Request) -> FeedbackAccepted:
        context = context_of(request.scope)
        body = await read_json(context, limits.max_body_bytes, limits.read_timeout_seconds)
        if journal is None:
            raise UnknownPrediction(
                "Predictions are not recorded here: the operator sets SERVING_JOURNAL_URL."
            )
        feedback = _parse(body)
        is_batch = isinstance(feedback, FeedbackBatch)
        items = feedback.feedback if isinstance(feedback, FeedbackBatch) else [feedback]
        models = context.key.models or None if context.key else None
        result = await journal.record_feedback([item.model_dump(mode="json") for item in items], models)
        return FeedbackAccepted(recorded=_recorded(result, is_batch))

    return routes


def _parse(body: bytes) -> Feedback | FeedbackBatch:
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise Malformed("The body is no JSON.") from None
    if not isinstance(document, dict):
        raise Unprocessable("Send an object.")
    kind = FeedbackBatch if "feedback" in document else Feedback
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)[:_MAX_FIELD_ERRORS]
        faults = tuple(FieldError(tuple(field["loc"]), field["msg"]) for field in errors)
        raise Unprocessable("The feedback does not fit.", faults) from None


def _recorded(result: dict[str, Any], is_batch: bool) -> int:
    """Return the number of outcomes that the journal recorded, or raise the error that it reports."""

    def location(index: int, field: str) -> tuple[str | int, ...]:
        return ("feedback", index, field) if is_batch else (field,)

    if "unknown" in result:
        faults = [
            FieldError(location(index, "prediction_id"), "There is no such prediction")
            for index in result["unknown"]
        ]
        raise UnknownPrediction("A prediction is not in the journal.", tuple(faults[:_MAX_FIELD_ERRORS]))
    if "misfits" in result:
        faults = [FieldError(location(index, field), message) for index, field, message in result["misfits"]]
        raise Unprocessable("An outcome does not fit its prediction.", tuple(faults[:_MAX_FIELD_ERRORS]))
    if "refused" in result:
        raise JournalUnavailable("The journal could not record the feedback.")
    recorded: int = result["recorded"]
    return recorded
