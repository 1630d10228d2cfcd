"""The state of each reference, as `/ready`, `/models` and `/status` report it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeAlias

from pydantic import BaseModel, Field

from serving.auth.authenticator import STALE, Authenticator
from serving.drift.monitor import DriftState
from serving.http.component_status import ComponentState
from serving.http.model_visibility import HIDDEN_REASON
from serving.journal.quality import QualityState
from serving.models.loaded_model import LoadedModel
from serving.models.slot import RECOVERING, Slot
from serving.registry.client import RegistryClient
from serving.registry.decisions import Candidate, CandidatePhase
from serving.registry.follower import Follower
from serving.rollout.status import CanaryState, ShadowState


class CandidateState(BaseModel):
    """The version that the reference names, while it is not live."""

    version: str | None
    state: str = Field(description="loading, waiting (for the next attempt), rejected or reverted")
    reason: str


class ComparisonState(BaseModel):
    """How the predictions of a version compare with those of another version for the same requests."""

    requests: int
    agreement: float = Field(description="share of rows with the same prediction, numbers within one percent")
    latency: float = Field(description="ratio of its median time to that of the other version")


class BatchingState(BaseModel):
    """Whether requests of different clients may share a model call."""

    shared: bool
    basis: str = Field(description="proof, monitoring, metadata or output form")
    reason: str


class ModelState(BaseModel):
    """The live version of one reference."""

    name: str
    uri: str
    version: str | None = None
    stage: str | None = None
    aliases: list[str] = []
    run_id: str | None = None
    model_id: str | None = None
    source: str | None = None
    digest: str | None = None
    loaded_at: datetime | None = None
    required: bool = Field(description="whether the readiness of the service requires it")
    state: str = Field(description="live, recovering, not live, or (on demand) asleep or waking")
    reason: str | None = Field(None, description="the reason why it is not live")
    candidate: CandidateState | None = None
    comparison: ComparisonState | None = Field(
        None, description="comparison with the previous live version on its last requests"
    )
    batching: BatchingState | None = Field(None, description="whether clients share model calls")
    canary: CanaryState | None = Field(None, description="for references that share a model by weight")
    shadow: ShadowState | None = Field(None, description="for a reference in shadow")
    drift: list[DriftState] | None = Field(
        None, description="the columns with the largest drift; null without a profile or before enough rows"
    )
    quality: QualityState | None = Field(None, description="from feedback; null without feedback")
    warnings: list[str] = []


class RegistryState(BaseModel):
    """The result of the last request to the registry."""

    uri: str
    reachable: bool | None = Field(description="null before the first request")
    checked_at: datetime | None = Field(description="time of the last successful request")


class Readiness(BaseModel):
    """The readiness of the service, and the live version of each model."""

    status: str = Field(description="ready, or not ready")
    model_uri: str = Field(description="the default model's reference")
    model_version: str | None = Field(description="the default model's live version")
    models: list[ModelState]
    registry: RegistryState
    components: list[ComponentState] = Field(
        default=[],
        exclude_if=lambda components: not components,
        description="components that ended unexpectedly a short time ago; absent if there are none",
    )
    keys: str | None = Field(
        None,
        exclude_if=lambda keys: keys is None,
        description="the API key file: readable, unreadable, or stale (no key is valid); absent without keys",
    )


StatusContributor: TypeAlias = Callable[[Slot], Mapping[str, Any]]
"""Returns the fields of a reference's `ModelState` that a feature contributes."""


def readiness(
    followers: Sequence[Follower],
    registry: RegistryClient,
    contributors: Sequence[StatusContributor],
    guard: Authenticator | None = None,
    *,
    in_full: bool = True,
) -> Readiness:
    """Return the body of `/ready`; without `in_full` it hides reasons and warnings."""
    models = [ModelState(**state_of(follower, contributors, in_full=in_full)) for follower in followers]
    is_ready = all(follower.slot.is_serving for follower in followers if follower.slot.required)
    keys = guard.state() if guard else None
    return Readiness(
        status="ready" if is_ready and keys != STALE else "not ready",
        model_uri=models[0].uri,
        model_version=models[0].version,
        models=models,
        registry=RegistryState(
            uri=registry.uri, reachable=registry.reachable, checked_at=registry.checked_at
        ),
        keys=keys,
    )


def state_of(
    follower: Follower, contributors: Sequence[StatusContributor], *, in_full: bool
) -> dict[str, Any]:
    """Return the fields of `ModelState` for one reference."""
    slot = follower.slot
    state: dict[str, Any] = {
        "name": slot.reference.name,
        "uri": slot.reference.uri,
        "required": slot.required,
        "state": slot.state,
        "candidate": _candidate(follower.candidate),
    }
    state |= _live_fields(slot.live) if slot.live else {"reason": slot.reason}
    if slot.live and not slot.is_serving:
        state["reason"] = RECOVERING
    warnings = [*slot.warnings, *state.get("warnings", [])]
    if not in_full:
        _hide_reasons(state)
        warnings = [f"warnings: {len(warnings)}; {HIDDEN_REASON}"] if warnings else []
    for contribute in contributors:
        fields = contribute(slot)
        state |= fields
        warnings += fields.get("warnings", ())
    return state | {"warnings": warnings}


def _live_fields(live: LoadedModel) -> dict[str, Any]:
    version = live.version
    return {
        "version": version.version,
        "stage": version.stage,
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        "model_id": version.model_id,
        "source": version.source,
        "digest": live.artifacts.digest,
        "loaded_at": live.loaded_at,
        "warnings": live.warnings,
        "batching": live.calls.sharing.as_json(),
        "comparison": asdict(live.comparison) if live.comparison else None,
    }


def _hide_reasons(state: dict[str, Any]) -> None:
    """Replace texts that can come from model code or exceptions."""
    for part in (state, state["candidate"], state.get("batching")):
        is_loading = part and part.get("state") == CandidatePhase.LOADING.value
        if part and part.get("reason") not in (None, "", RECOVERING) and not is_loading:
            part["reason"] = HIDDEN_REASON


def _candidate(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {
        "version": candidate.version.version,
        "state": candidate.state.value,
        "reason": candidate.reason,
    }
