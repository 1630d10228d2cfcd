"""The progress of a canary in the registry, where all fronts read it.

The tag `serving.canary.state` holds JSON for the fronts, and `serving.canary` a sentence for people. A person
who deletes the sentence resets the canary: without it, the fronts ignore the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, ValidationError

TAG = "serving.canary"
STATE_TAG = "serving.canary.state"


class Phase(StrEnum):
    """The phase of a canary on any front."""

    ROUTING = "routing"
    ENDED = "ended"
    STOPPED = "stopped"


class CanaryProgress(BaseModel):
    """The furthest step of a version under one reference; `share` is between 0 and 1."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    reference: str
    share: float


def read(tags: Mapping[str, str]) -> CanaryProgress | None:
    """Return the progress in a version's tags; None if it is absent or invalid, or if a person reset it."""
    if TAG not in tags or STATE_TAG not in tags:
        return None
    try:
        return CanaryProgress.model_validate_json(tags[STATE_TAG])
    except ValidationError:
        return None


def is_stopped(tags: Mapping[str, str]) -> bool:
    """Return whether a front has stopped the canary; this holds for all fronts."""
    progress = read(tags)
    return progress is not None and progress.phase is Phase.STOPPED


def start_step(reference: str, steps: Sequence[float], present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write when a front starts the first of `steps`.

    Another front may have stopped the canary, or may be at a later step: then there is nothing to write.
    """
    if is_stopped(present) or _is_at(reference, steps, read(present)):
        return {}
    # The state first: the sentence would make the state of a canary that a person has reset valid again.
    return {STATE_TAG: _encode(Phase.ROUTING, reference, steps[0]), TAG: describe(reference, steps[0])}


def end(reference: str, steps: Sequence[float], present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write when a version at one of `steps` is no candidate any more."""
    progress = read(present)
    if progress is None or not _is_at(reference, steps, progress):
        return {}
    sentence = f"received {describe(reference, progress.share)}"
    return {TAG: sentence, STATE_TAG: _encode(Phase.ENDED, reference, progress.share)}


def stop(reference: str, share: float, reason: str) -> dict[str, str | None]:
    """Return the tags to write when a front stops the canary; the state last: who reads it has the reason."""
    return {TAG: reason, STATE_TAG: _encode(Phase.STOPPED, reference, share)}


def describe(reference: str, share: float) -> str:
    """Return a sentence for people about a step."""
    return f"up to {100 * share:.4g} % of the requests, as {reference}"


def _is_at(reference: str, steps: Sequence[float], progress: CanaryProgress | None) -> bool:
    return (
        progress is not None
        and (progress.phase, progress.reference) == (Phase.ROUTING, reference)
        and progress.share in steps
    )


def _encode(phase: Phase, reference: str, share: float) -> str:
    return CanaryProgress(phase=phase, reference=reference, share=share).model_dump_json()
