"""`POST /feedback`: the true outcome of an earlier prediction."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any
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
from serving.journal.observer import JournalObserver
from serving.settings.groups import LimitSettings

_MAX_ITEMS = 10_000
_MAX_FIELD_ERRORS = 20


class Feedback(BaseModel):
    """The true outcome for one row of a prediction."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: UUID = Field(description="the header X-Prediction-ID of the answer")
    outcome: Any = Field(description="a class or its number, a number, or what has the prediction's shape")
    row: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = Field(
        0, description="which row of the request, from 0 on"
    )

    @field_validator("outcome")
    @classmethod
    def _is_kept(cls, outcome: Any) -> Any:
        with suppress(TypeError):  # a whole number of more than 64 bits
            if orjson.loads(orjson.dumps(outcome)) == outcome:
                return outcome
        raise PydanticCustomError("outcome", "Input should have finite numbers only, of 64 bits")


class FeedbackBatch(BaseModel):
    """Several outcomes, which are taken all or none."""

    model_config = ConfigDict(extra="forbid")

    feedback: Annotated[list[Feedback], Field(min_length=1, max_length=_MAX_ITEMS)]


class FeedbackAccepted(BaseModel):
    """What was taken."""

    recorded: int = Field(description="how many outcomes")


_SCHEMA = TypeAdapter(Feedback | FeedbackBatch).json_schema(ref_template="#/components/schemas/{model}")
SCHEMAS: dict[str, Any] = _SCHEMA.pop("$defs")
"""What the documentation of the route refers to."""


def router(journal: JournalObserver | None, limits: LimitSettings) -> APIRouter:
    """The route of feedback."""
    routes = APIRouter(tags=["feedback"])
    body = {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}

    @routes.post(
        "/feedback",
        summary="Tell the true outcome of an earlier prediction; again to correct it",
        responses=documented(400, 404, 413, 415, 422, 503),
        openapi_extra={"requestBody": body},
    )
    @requires(PREDICT)
    async def feed_back(request: Request) -> FeedbackAccepted:
        context = context_of(request.scope)
        sent = await read_json(context, limits.max_body_bytes, limits.receive_seconds)
        if journal is None:
            raise UnknownPrediction(
                "Predictions are not recorded here: the operator sets SERVING_JOURNAL_URL."
            )
        asked = _read(sent)
        listed = asked.feedback if isinstance(asked, FeedbackBatch) else [asked]
        key = context.key
        found = await journal.record_feedback(
            [each.model_dump(mode="json") for each in listed], key.models or None if key else None
        )
        return FeedbackAccepted(recorded=_recorded(found, isinstance(asked, FeedbackBatch)))

    return routes


def _read(body: bytes) -> Feedback | FeedbackBatch:
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise Malformed("The body is no JSON.") from None
    if not isinstance(given, dict):
        raise Unprocessable("Send an object.")
    kind = FeedbackBatch if "feedback" in given else Feedback
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:_MAX_FIELD_ERRORS]
        faults = tuple(FieldError(tuple(each["loc"]), each["msg"]) for each in found)
        raise Unprocessable("The feedback does not fit.", faults) from None


def _recorded(found: dict[str, Any], is_list: bool) -> int:
    """How many outcomes were taken, if they were."""

    def at(index: int, field: str) -> tuple[str | int, ...]:
        return ("feedback", index, field) if is_list else (field,)

    if "unknown" in found:
        faults = [
            FieldError(at(index, "prediction_id"), "There is no such prediction")
            for index in found["unknown"]
        ]
        raise UnknownPrediction("A prediction is not in the journal.", tuple(faults[:_MAX_FIELD_ERRORS]))
    if "misfits" in found:
        wrong = [FieldError(at(index, field), message) for index, field, message in found["misfits"]]
        raise Unprocessable("An outcome does not fit its prediction.", tuple(wrong[:_MAX_FIELD_ERRORS]))
    if "refused" in found:
        raise JournalUnavailable("The journal did not take it.")
    recorded: int = found["recorded"]
    return recorded
