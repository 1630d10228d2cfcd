"""The state of what is served for each reference, as `/ready`, `/models` and `/status` report it."""

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
    """The version that the reference names while it is not live."""

    version: str | None
    state: str = Field(description="loading, waiting (it is tried again), rejected or reverted")
    reason: str


class ComparisonState(BaseModel):
    """How a version answered requests that another had answered."""

    requests: int
    agreement: float = Field(description="share of rows with the same answer, numbers within one percent")
    latency: float = Field(description="its median time as a ratio to the other version's")


class BatchingState(BaseModel):
    """Whether requests of different callers may share a call of the model."""

    shared: bool
    basis: str = Field(description="proof, monitoring, metadata or output form")
    reason: str


class ModelState(BaseModel):
    """What is live for one reference."""

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
    required: bool = Field(description="whether the service is not ready without it")
    state: str = Field(description="live, recovering, not live, or (on demand) asleep or waking")
    reason: str | None = Field(None, description="why it is not live")
    candidate: CandidateState | None = None
    comparison: ComparisonState | None = Field(
        None, description="how it answered the last requests of the version that was live before"
    )
    batching: BatchingState | None = Field(None, description="whether callers share calls of the model")
    canary: CanaryState | None = Field(None, description="of references that share a model by weight")
    shadow: ShadowState | None = Field(None, description="of a reference that is a shadow")
    drift: list[DriftState] | None = Field(
        None, description="the columns that have drifted most; null without a profile or before enough rows"
    )
    quality: QualityState | None = Field(None, description="by the feedback that came; null without")
    warnings: list[str] = []


class RegistryState(BaseModel):
    """What the last look at the registry came to."""

    uri: str
    reachable: bool | None = Field(description="null before the first look")
    checked_at: datetime | None = Field(description="when a look last succeeded")


class Readiness(BaseModel):
    """Whether every required model is live, and which version of it."""

    status: str = Field(description="ready, or not ready")
    model_uri: str = Field(description="the default model's reference")
    model_version: str | None = Field(description="the default model's live version")
    models: list[ModelState]
    registry: RegistryState
    components: list[ComponentState] = Field(
        default=[],
        exclude_if=lambda found: not found,
        description="background components that ended unexpectedly a short time ago; absent if none did",
    )
    keys: str | None = Field(
        None,
        exclude_if=lambda found: found is None,
        description="readable, unreadable, or stale: no key is valid any more; absent without keys",
    )


StatusContributor: TypeAlias = Callable[[Slot], Mapping[str, Any]]
"""Tells fields of a reference's `ModelState` that others know."""


def readiness(
    followers: Sequence[Follower],
    registry: RegistryClient,
    tellers: Sequence[StatusContributor],
    guard: Authenticator | None = None,
    *,
    in_full: bool = True,
) -> Readiness:
    """What `/ready` answers."""
    models = [ModelState(**state_of(follower, tellers, in_full=in_full)) for follower in followers]
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


def state_of(follower: Follower, tellers: Sequence[StatusContributor], *, in_full: bool) -> dict[str, Any]:
    slot = follower.slot
    state: dict[str, Any] = {
        "name": slot.reference.name,
        "uri": slot.reference.uri,
        "required": slot.required,
        "state": slot.state,
        "candidate": _candidate(follower.candidate),
    }
    state |= _facts(slot.live) if slot.live else {"reason": slot.reason}
    if slot.live and not slot.is_serving:
        state["reason"] = RECOVERING
    warnings = [*slot.warnings, *state.get("warnings", [])]
    if not in_full:
        _hide_reasons(state)
        warnings = [f"warnings: {len(warnings)}; {HIDDEN_REASON}"] if warnings else []
    for teller in tellers:
        told = teller(slot)
        state |= told
        warnings += told.get("warnings", ())
    return state | {"warnings": warnings}


def _facts(live: LoadedModel) -> dict[str, Any]:
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
    """Replace texts that models or exceptions can have written."""
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
