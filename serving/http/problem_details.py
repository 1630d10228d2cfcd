"""Errors as RFC 9457 problem details: without traceback, without the client's input, at most 8 KB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Protocol

import orjson
from fastapi import Path
from pydantic import BaseModel, Field
from starlette.responses import Response

from serving.errors import FieldError
from serving.text import shorten

MEDIA_TYPE = "application/problem+json"
_MAX_BYTES = 8192


class FieldErrorDetail(BaseModel):
    """An invalid field and the reason."""

    loc: list[str | int] = Field(description="path to the field")
    msg: str


class Problem(BaseModel):
    """An error, as RFC 9457 defines it."""

    type: str = Field(description="a URI that identifies the kind of problem")
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldErrorDetail] = Field(default=[], description="the invalid fields")


class Respond(Protocol):
    """Renders an error in the format of a protocol."""

    def __call__(
        self,
        status: int,
        detail: str,
        request_id: str,
        *,
        faults: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Return the response."""


def respond(
    status: int,
    detail: str,
    request_id: str,
    *,
    faults: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem response; it omits field errors that do not fit into 8 KB."""
    listed = [{"loc": fault.loc, "msg": shorten(fault.msg, 300)} for fault in faults]
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": shorten(detail, 1000),
        "request_id": request_id,
        "errors": listed,
    }
    body = orjson.dumps(problem)
    while len(body) > _MAX_BYTES and listed:
        del listed[len(listed) // 2 :]
        body = orjson.dumps(problem)
    return Response(body, status, dict(headers or {}), MEDIA_TYPE)


PATH_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
PathText = Annotated[str, Path(pattern=PATH_PATTERN)]
"""A path parameter: any text without control characters."""


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Return the OpenAPI responses of a route for these statuses."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }
