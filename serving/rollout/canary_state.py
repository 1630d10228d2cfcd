"""The progress of a canary in the registry, where all fronts read it.

The tag `serving.canary.state` holds JSON for the fronts, and `serving.canary` a sentence for people. A person
who deletes the sentence resets the canary: without it, the fronts ignore the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.registry.tag_changes import MAX_REASON_LENGTH
from serving.rollout.outcome_test import Evidence
from serving.text import shorten

TAG = "serving.canary"
STATE_TAG = "serving.canary.state"


class Phase(StrEnum):
    """The phase of a canary on any front."""

    ROUTING = "routing"
    ENDED = "ended"
    STOPPED = "stopped"
    PROMOTED = "promoted"


class CanaryProgress(BaseModel):
    """The furthest step of a version under one reference; `share` is between 0 and 1.

    `outcomes` has the fields of `Evidence`, as the front that wrote them last computed them.
    """

    model_config = ConfigDict(frozen=True)

    phase: Phase
    reference: str
    share: float
    outcomes: dict[str, Any] | None = None


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


def is_over(tags: Mapping[str, str]) -> bool:
    """Return whether a front has stopped the canary, or has promoted the version at its end."""
    progress = read(tags)
    return progress is not None and progress.phase in (Phase.STOPPED, Phase.PROMOTED)


def is_promoted(tags: Mapping[str, str]) -> bool:
    """Return whether a front has promoted the version at the end of its canary."""
    progress = read(tags)
    return progress is not None and progress.phase is Phase.PROMOTED


def start_step(reference: str, steps: Sequence[float], present: Mapping[str, str]) -> dict[str, str | None]:
    """Return the tags to write when a front starts the first of `steps`.

    Another front may have stopped the canary, or may be at a later step: then there is nothing to write.
    """
    if is_over(present) or _is_at(reference, steps, read(present)):
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


def show_outcomes(
    reference: str, share: float, evidence: Evidence, present: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the tags with the outcomes of a step, unless the canary is elsewhere meanwhile."""
    if not _is_at(reference, (share,), read(present)):
        return {}
    sentence = shorten(f"{describe(reference, share)}; {evidence}", MAX_REASON_LENGTH)
    return {STATE_TAG: _encode(Phase.ROUTING, reference, share, evidence), TAG: sentence}


def stop(
    reference: str, share: float, reason: str, evidence: Evidence | None = None
) -> dict[str, str | None]:
    """Return the tags to write when a front stops the canary; the state last: who reads it has the reason."""
    return {TAG: reason, STATE_TAG: _encode(Phase.STOPPED, reference, share, evidence)}


def promote(
    reference: str, share: float, sentence: str, evidence: Evidence | None = None
) -> dict[str, str | None]:
    """Return the tags to write when a front has promoted the version."""
    return {TAG: sentence, STATE_TAG: _encode(Phase.PROMOTED, reference, share, evidence)}


def describe(reference: str, share: float) -> str:
    """Return a sentence for people about a step."""
    return f"up to {100 * share:.4g} % of the requests, as {reference}"


def _is_at(reference: str, steps: Sequence[float], progress: CanaryProgress | None) -> bool:
    return (
        progress is not None
        and (progress.phase, progress.reference) == (Phase.ROUTING, reference)
        and progress.share in steps
    )


def _encode(phase: Phase, reference: str, share: float, evidence: Evidence | None = None) -> str:
    outcomes = asdict(evidence) if evidence else None
    progress = CanaryProgress(phase=phase, reference=reference, share=share, outcomes=outcomes)
    return progress.model_dump_json(exclude_none=True)
