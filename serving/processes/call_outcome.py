"""Reads the outcome of a call from the frames of a model process, which is not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from serving.errors import FieldError, ModelFailed, ProcessDied, Unprocessable
from serving.processes import framing
from serving.text import shorten

_MAX_FIELD_ERRORS = 20
_DECODE_ERRORS = (ValueError, TypeError, LookupError, RecursionError)
Outcome = bytes | ModelFailed | ProcessDied | Unprocessable
"""Result of a call: encoded output, exception of the model, death of the process, or invalid input."""


def outcome_of(kind: framing.FrameType, payload: bytes) -> Outcome:
    """Return the outcome of a call from its last frame."""
    if kind is framing.FrameType.INVALID:
        return _invalid_input(payload)
    if kind is framing.FrameType.FAILED:
        error, trace = failure(payload)
        return ModelFailed(f"it raised {error}", trace, error.partition(":")[0])
    return payload


def model_facts(payload: bytes) -> Mapping[str, Any]:
    """Return the facts that a process sends once it has loaded its model; none if they are malformed."""
    try:
        facts = json.loads(payload or b"{}")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _invalid_input(payload: bytes) -> Unprocessable:
    try:
        listed = json.loads(payload)[:_MAX_FIELD_ERRORS]
        errors = [FieldError(tuple(error["loc"]), shorten(str(error["msg"]), 200)) for error in listed]
    except _DECODE_ERRORS:
        errors = []
    return Unprocessable("The input does not match the type hint of the model.", tuple(errors))


def failure(payload: bytes) -> tuple[str, str]:
    """Return the exception in one line, and its traceback, from a payload that is not trusted."""
    try:
        fields = json.loads(payload)
        return shorten(" ".join(str(fields["error"]).split()), 1000), str(fields["traceback"])
    except _DECODE_ERRORS:
        return "an exception that could not be read", repr(payload[:1000])
