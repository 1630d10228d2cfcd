"""Report the state of each reference in `/ready`, `/models` and `/status`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field, create_model

from serving.auth.authenticator import Authenticator
from serving.http.component_status import ComponentState
from serving.http.model_visibility import HIDDEN_REASON
from serving.models.loaded_model import LoadedModel
from serving.models.slot import RECOVERING, Slot
from serving.registry.client import RegistryClient
from serving.registry.decisions import Candidate, CandidatePhase
from serving.registry.follower import Follower
from serving.watched_file import STALE


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


class CoreModelState(BaseModel):
    """The part of a reference's state that the service reports without any feature."""

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
    batching: BatchingState | None = Field(None, description="whether callers share calls of the model")


class Warnings(BaseModel):
    """The last field of a reference's state."""

    warnings: list[str] = []


class RegistryState(BaseModel):
    """The result of the last request to the registry."""

    uri: str | None = Field(description="null for clients that are no operators")
    reachable: bool | None = Field(description="null before the first request")
    state: str | None = Field(
        None,
        description="reachable, or why the last request failed: away, denied, rejected, internal error or "
        "driver missing; null before the first request",
    )
    checked_at: datetime | None = Field(description="time of the last successful request")


class Readiness(BaseModel):
    """The readiness of the service, and the live version of each model."""

    status: str = Field(description="ready, or not ready")
    model_uri: str = Field(description="the default model's reference")
    model_version: str | None = Field(description="the default model's live version")
    models: list[CoreModelState]
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


@dataclass(frozen=True, slots=True)
class StatusPart:
    """The values that a feature contributes to the state of one reference."""

    fields: BaseModel | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StatusSource:
    """A feature's contribution to the state of each reference.

    Attributes:
        fields: The fields, all with defaults; their class extends `ModelState` in `/ready` and its schema.
        report: Returns the values for a slot. With `public=True` it includes nothing that only holders of
            API keys may read.
    """

    fields: type[BaseModel]
    report: Callable[[Slot, bool], StatusPart] = lambda slot, public: StatusPart()


class StatusReporter:
    """Composes the state of references from the core's fields and those of the features.

    Attributes:
        model_state: The type of a reference's state: a subclass of `CoreModelState`.
        readiness_type: The type of the body of `/ready`.
    """

    def __init__(
        self,
        followers: Sequence[Follower],
        registry: RegistryClient,
        sources: Sequence[StatusSource] = (),
        guard: Authenticator | None = None,
    ) -> None:
        self.followers, self.registry = followers, registry
        self._sources, self._guard = sources, guard
        # pydantic takes the fields of the last base class first.
        bases: tuple[type[Any], ...] = (
            Warnings,
            *(source.fields for source in reversed(sources)),
            CoreModelState,
        )
        self.model_state: type[Any] = create_model(
            "ModelState", __base__=bases, __doc__="What is live for one reference."
        )
        self.readiness_type: type[Readiness] = create_model(
            "Readiness",
            __base__=Readiness,
            __doc__=Readiness.__doc__,
            models=(list[self.model_state], ...),  # type: ignore[name-defined]  # a type made at run time
        )

    def readiness(self, *, in_full: bool = True, public: bool = False) -> Readiness:
        """Return the body of `/ready`; see `state` for the arguments."""
        models = [
            self.model_state(**self.state(follower, in_full=in_full, public=public))
            for follower in self.followers
        ]
        default, keys = self.followers[0].slot, self._guard.state() if self._guard else None
        is_ready = all(follower.slot.is_serving for follower in self.followers if follower.slot.required)
        return self.readiness_type(
            status="ready" if is_ready and keys != STALE else "not ready",
            model_uri=default.reference.uri,
            model_version=default.live.version.version if default.live else None,
            models=models,
            registry=RegistryState(
                uri=self.registry.uri,
                reachable=self.registry.reachable,
                state=self.registry.state,
                checked_at=self.registry.checked_at,
            ),
            keys=keys,
        )

    def state(self, follower: Follower, *, in_full: bool = True, public: bool = False) -> dict[str, Any]:
        """Return the values of `model_state` for one reference.

        Args:
            follower: Follows the reference.
            in_full: Include texts that models or exceptions can have written.
            public: Let features leave out what only holders of API keys may read.
        """
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
        warnings = slot.all_warnings
        if not in_full:
            _hide_reasons(state)
            warnings = [f"warnings: {len(warnings)}; {HIDDEN_REASON}"] if warnings else []
        for source in self._sources:
            part = source.report(slot, public)
            state |= dict(part.fields or ())
            warnings += part.warnings
        return state | {"warnings": warnings}

    def warnings_by_feature(self, follower: Follower) -> dict[str, list[str]]:
        """Return the warnings of features about a reference, by the name of the feature's first field."""
        reports = {
            next(iter(source.fields.model_fields)): source.report(follower.slot, False)
            for source in self._sources
        }
        return {name: [*part.warnings] for name, part in reports.items() if part.warnings}


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
